"""What a classifier's run says of its probabilities: counts, figures, the picture, the card and the report's plot."""

import json
import re
import struct

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import brier_score_loss
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignkit import load_reward
from alignkit.data.splitting import held_out
from alignkit.recipe import load_recipe
from alignkit.report import render_report
from alignkit.report.reading import read_run
from alignkit.report.reliability import reliability_section, reliability_words, write_diagram
from alignkit.run import run_recipe
from alignkit.run.calibration import brier_score, calibration_error, calibration_figures, reliability

GOOD, BAD = "good fine superb lovely", "bad dull awful poor"
NOISE = "the film was set in a town and so on"


def texts(count, seed, pair):
    """Each text has four words of praise or blame; how many of them are praise says how likely its label is 1."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        warm = generator.integers(5)
        words = [str(generator.choice((GOOD if place < warm else BAD).split())) for place in range(4)]
        text = f"{' '.join(generator.permutation([*words, *NOISE.split()[: generator.integers(9)]]))} {number}"
        label = int(generator.random() < [0.05, 0.3, 0.5, 0.7, 0.95][warm])
        extra = {"text_pair": "so what", "baseline": int(warm > 2)} if pair else {}
        rows.append({"text": text, **extra, "label": label})
    return rows


@pytest.fixture(scope="module", params=["pair", "single"])
def run(request, tmp_path_factory):
    """A run whose pairs are calibrated, and one on single texts that is left as trained, with other class names."""
    folder, pair = tmp_path_factory.mktemp("run"), request.param == "pair"
    for split, count, seed in (("train", 600, 1), ("validation", 200, 2)):
        Dataset.from_list(texts(count, seed, pair)).to_parquet(folder / f"{split}.parquet")
    model = {"scratch": {"hidden_size": 32, "layers": 1, "vocab_size": 300}}
    model |= {"calibrate": True, "labels": ["NEGATIVE", "POSITIVE"]} if pair else {"labels": ["cold", "warm"]}
    (folder / "recipe.yaml").write_text(json.dumps({
        "trainer": "classifier", "model": model, "data": {"use": "files", "path": str(folder)},
        "training": {"output_dir": str(folder / "run"), "num_train_epochs": 6, "learning_rate": 3e-3, "use_cpu": True,
                     "bf16": False, "per_device_train_batch_size": 32, "save_strategy": "no", "report_to": "none",
                     **({"train_sampling_strategy": "group_by_length"} if pair else {})},
    }))  # fmt: skip
    return run_recipe(load_recipe(folder / "recipe.yaml"))


@torch.no_grad()
def logits_of(run, rows):
    """Of the saved model on these texts, each on its own, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    found = []
    for row in rows:
        # what tells the two texts of a pair apart, which this tokenizer gives on demand only
        pair = {"text_pair": row["text_pair"], "return_token_type_ids": True} if "text_pair" in row else {}
        found.append(model(**tokenizer(row["text"], **pair, return_tensors="pt")).logits[0].tolist())
    return found, [row["label"] for row in rows]


def rows_of(run, split):
    return list(Dataset.from_parquet(str(run.parent / f"{split}.parquet")))


def by_hand(logits, labels, temperature=1.0):
    """(tenth of the confidence) -> [texts, right ones, sum of confidences], by plain arithmetic."""
    bins = {}
    for row, label in zip(logits, labels, strict=True):
        powers = [2.718281828459045 ** (value * temperature) for value in row]
        confidence = max(powers) / sum(powers)
        own = bins.setdefault(min(int(confidence * 10), 9), [0, 0, 0.0])
        own[0], own[1], own[2] = own[0] + 1, own[1] + (row.index(max(row)) == label), own[2] + confidence
    return bins


def test_the_counts_and_accuracies_are_those_of_the_saved_model(run):
    found, after = read_run(run).reliability, read_run(run).after
    logits, labels = logits_of(run, rows_of(run, "validation"))
    last = "scaled" if "scaled" in found else "as_trained"
    assert found["rows"] == len(labels) == 200
    for side, temperature in ((last, 1.0), ("as_trained", found.get("temperature", 1.0))):
        expected = by_hand(logits, labels, temperature)
        assert len(expected) > 2
        bins = {round(one["low"] * 10): one for one in found[side]["bins"]}
        assert {place: (one["count"], one["right"]) for place, one in bins.items()} == {
            place: (count, right) for place, (count, right, _) in expected.items()
        }
        for place, (count, _, confidence) in expected.items():
            assert bins[place]["confidence"] == pytest.approx(confidence / count, abs=1e-4)
        error = sum(abs(confidence - right) for _, right, confidence in expected.values()) / 200
        assert found[side]["calibration_error"] == pytest.approx(error, abs=1e-4)
    assert after["accuracy"] == sum(one["right"] for one in found[last]["bins"]) / 200
    assert {key: after[key] for key in ("nll", "brier", "calibration_error")} == pytest.approx(
        {key: found[last][key] for key in ("nll", "brier", "calibration_error")}
    )


def test_what_a_text_shows_is_what_the_saved_model_says_of_it(run):
    """Also where the host groups texts by their lengths."""
    rows = rows_of(run, "validation")
    found = {row["text"]: (own, row["label"]) for row, own in zip(rows, logits_of(run, rows)[0], strict=True)}
    shown = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    shown = [row for row in shown if row["phase"] == "after"]
    assert len(shown) == 64
    for row in shown:
        own, label = found[row["prompt"].split("\n")[0]]
        assert row["reward"] == pytest.approx(float(torch.tensor(own).softmax(-1)[label]), abs=1e-4)


def test_the_temperature_was_fitted_on_the_texts_of_train_that_were_left_out(run):
    found = read_run(run).reliability
    if "scaled" not in found:
        assert set(found) == {"rows", "labels", "as_trained"}
        return
    train = rows_of(run, "train")
    out = held_out([(row["text"], row["text_pair"]) for row in train], 0.05)
    kept = [row for row, is_out in zip(train, out, strict=True) if is_out]
    assert len(kept) == found["fitted_on_rows"] > 10
    logits, labels = (np.array(part) for part in logits_of(run, kept))
    figures = [calibration_figures(logits * factor, labels)["nll"] for factor in (0.9, 1.0, 1.1)]
    assert figures[1] < figures[0] and figures[1] < figures[2]
    assert found["temperature"] != pytest.approx(1, abs=0.02)


def test_the_calibration_error_of_a_case_worked_by_hand():
    # confidence 0.6 four times, right twice: |0.6 - 0.5|; 0.95 six times, right five times: |0.95 - 5/6|
    probabilities = [[0.4, 0.6]] * 4 + [[0.95, 0.05]] * 6
    labels = np.array([1, 1, 0, 0] + [0] * 5 + [1])
    logits = np.log(np.array(probabilities))
    bins = reliability(logits, labels)
    assert [(one.count, one.right) for one in bins] == [(4, 2), (6, 5)]
    assert calibration_error(bins) == pytest.approx(0.4 * 0.1 + 0.6 * (0.95 - 5 / 6))
    # half the squared distance of two classes is that of one: 0.4^2 and 0.6^2, 0.05^2 and 0.95^2
    by_rows = 2 * 0.4**2 + 2 * 0.6**2 + 5 * 0.05**2 + 0.95**2
    assert brier_score(logits, labels) == pytest.approx(by_rows / 10)


def test_figures_agree_with_sklearn_for_three_classes():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(0, 2, (500, 3)), generator.integers(0, 3, 500)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = calibration_figures(logits, labels)
    of_each = [brier_score_loss(labels == label, shares[:, label]) for label in range(3)]
    assert found["brier"] == pytest.approx(sum(of_each) / 2)
    assert found["nll"] == pytest.approx(-np.log(shares[np.arange(500), labels]).mean())
    assert sum(one["count"] for one in found["bins"]) == 500


def test_the_picture_lies_beside_the_weights_and_is_drawn_again_from_results(run, tmp_path):
    picture = (run / "model" / "reliability.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width > 600 and height > 600
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert reliability_section(read_run(run)).strip() in card and "![Reliability diagram](reliability.png)" in card
    again = write_diagram(json.loads((run / "results.json").read_text())["reliability"], tmp_path)
    assert again.read_bytes() == picture


def test_the_section_of_the_card_names_every_figure_and_its_code_runs(run):
    read = read_run(run)
    section, found, after = reliability_section(read), read.reliability, read.after
    pair = "scaled" in found
    assert f"accuracy is {after['accuracy']:.4f}" in section and f"class gives {after['majority']:.4f}" in section
    assert (
        (f"`baseline`, which needs no model, {after['baseline']:.4f}" in section) if pair else "baseline" not in section
    )
    for side in ("as_trained", "scaled") if pair else ("as_trained",):
        assert all(f" {found[side][key]:.4f} |" in section for key in ("nll", "brier", "calibration_error"))
    assert "![Reliability diagram](reliability.png)" in section
    (code,) = re.findall(r"```python\n(.*?)print", section, re.DOTALL)
    space = {}
    exec(code.replace("path/to/this/model", str(run / "model")), space)
    told_apart = space["reward"](["the film was bad"] * 2, ["good superb", "awful"])
    assert all(0 < score < 1 for score in told_apart)
    named = load_reward("look_ahead" if pair else "sentiment", model=str(run / "model"), label=1)
    assert told_apart == named(["the film was bad"] * 2, ["good superb", "awful"])
    assert ('label: "warm"' in section) is not pair


def test_the_report_shows_the_diagram_and_no_diagram_without_a_classifier(run):
    read = read_run(run)
    page = render_report(read)
    sides = ["as trained", "after temperature scaling"][: 1 + ("scaled" in read.reliability)]
    assert 'id="reliability"' in page and all(f'data-label="{side}"' in page for side in ["both equal", *sides])
    assert reliability_words(read) in page and "200 held-out texts" in page
    drawn = re.search(rf'data-label="{sides[-1]}".*?class="dots" d="(.*?)"', page, re.DOTALL).group(1)
    assert drawn.count("M") == len(read.reliability[("as_trained", "scaled")[len(sides) - 1]]["bins"])
    last = read.reliability["scaled" if len(sides) == 2 else "as_trained"]["bins"]
    shown = re.findall(r"<td>(\d+)% to (\d+)%</td><td>(\d+)</td>", page)
    assert [(int(low), int(high), int(count)) for low, high, count in shown] == [
        (round(100 * one["low"]), round(100 * one["high"]), one["count"]) for one in last
    ]
    read.reliability = {}
    assert 'id="reliability"' not in render_report(read)
