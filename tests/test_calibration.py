"""Probabilities that fit, and a classifier of pairs that is held beside a guess."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import expit

from alignkit import load_data, load_reward
from alignkit.data import data_problems
from alignkit.errors import DataError, ModelError
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.run.calibration import calibration_error, divide_logits, fitted_temperature, reliability

MOODS = {"i hated it": 0, "it was dull": 0, "i loved it": 1, "it was superb": 1}


def sure(temperature: float, count: int = 20_000):
    """Logits that are `temperature` times as sure as the labels drawn from them allow."""
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 2, count)
    labels = (generator.random(count) < expit(honest)).astype(int)
    return np.stack([np.zeros(count), honest * temperature], 1), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_one_that_made_the_logits_too_sure(temperature):
    logits, labels = sure(temperature)
    assert fitted_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)
    after = calibration_error(reliability(logits / temperature, labels))
    assert after < 0.01
    assert temperature == 1 or calibration_error(reliability(logits, labels)) > 5 * after


def test_bins_hold_every_text_once():
    logits = np.log(np.array([[0.95, 0.05], [0.9, 0.1], [0.4, 0.6], [0.35, 0.65]]))
    bins = reliability(logits, np.array([0, 1, 1, 1]))
    assert [(b.low, b.high, b.count, b.right) for b in bins] == [(0.6, 0.7, 2, 2), (0.9, 1.0, 2, 1)]
    assert [b.accuracy for b in bins] == [1.0, 0.5]
    assert bins[0].confidence == pytest.approx(0.625) and bins[1].confidence == pytest.approx(0.925)
    assert calibration_error(bins) == pytest.approx(0.5 * 0.375 + 0.5 * 0.425)


def test_the_saved_model_gives_the_divided_logits():
    model, ids = tiny_classifier(), torch.tensor([[3, 4, 5]])
    before = model(ids).logits
    divide_logits(model, 2.0)
    torch.testing.assert_close(model(ids).logits, before / 2)
    with pytest.raises(ModelError, match=r"no linear layer .*leave `calibrate` out"):
        divide_logits(tiny_causal_lm(), 2.0)


class Mood:
    """1 for a pleasant text, 0 for another, nothing to say of one that it does not know."""

    __name__ = "mood"

    def __call__(self, prompts, completions, **columns):
        return [MOODS.get(text.rstrip(" .0123456789")) for text in completions]


@pytest.fixture
def dialogues(tmp_path, monkeypatch):
    """The next turn is pleasant when the reply is \"sorry\" to an unpleasant turn, and as the turn was otherwise."""
    rows = []
    generator = np.random.default_rng(0)
    for _ in range(600):
        turn = str(generator.choice(list(MOODS)))
        reply = str(generator.choice(["so sorry", "so what"]))
        better = MOODS[turn] or reply == "so sorry"
        following = str(generator.choice([text for text, mood in MOODS.items() if mood == better]))
        emotions = [0, 0, 0]
        turn = f"{turn} . {generator.integers(40)}"
        rows.append({"utterances": [turn, reply, following], "emotions": emotions})
    rows.append({"utterances": ["i loved it .", "so what"], "emotions": [0, 0]})  # ends with the reply
    rows.append({"utterances": ["who knows", "so what", "i loved it"], "emotions": [0, 0, 0]})
    (tmp_path / "dailydialog").mkdir()
    for split, part in (
        ("train", rows),
        ("validation", [{**r, "utterances": [*r["utterances"], "x"]} for r in rows[:200]]),
    ):
        Dataset.from_list(part).to_parquet(tmp_path / "dailydialog" / f"{split}.parquet")
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))


LABELLED = {"of": {"use": "dailydialog", "turns": 1}, "labeller": {"use": f"{__file__}:Mood"}}


def test_labels_are_what_the_reward_says_of_the_next_turn(dialogues):
    train = load_data("look_ahead", **LABELLED)["train"]
    asked = [text.split(".")[0] for text in train["text"]]
    assert set(zip(asked, train["text_pair"], train["label"], train["baseline"], strict=True)) == {
        (text, reply, int(mood or reply == "so sorry"), mood)
        for text, mood in MOODS.items()
        for reply in ("so sorry", "so what")
    }


def test_a_predictor_beats_the_guess_that_a_reply_changes_nothing(dialogues, tmp_path):
    recipe = tmp_path / "predictor.yaml"
    recipe.write_text(json.dumps({
        "trainer": "classifier",
        "model": {"scratch": {"hidden_size": 32, "layers": 1, "vocab_size": 300}, "calibrate": True,
                  "labels": ["NEGATIVE", "POSITIVE"]},
        "data": {"use": "look_ahead", **LABELLED},
        "training": {"output_dir": str(tmp_path / "run"), "num_train_epochs": 20, "learning_rate": 3e-3,
                     "use_cpu": True, "per_device_train_batch_size": 32, "save_strategy": "no", "report_to": "none"},
    }))  # fmt: skip
    folder = run_recipe(load_recipe(recipe))
    after = json.loads((folder / "results.json").read_text())["after"]
    assert after["accuracy"] == 1.0 > after["baseline"] > after["majority"] - 0.2
    assert after["baseline"] == pytest.approx(0.75, abs=0.1)
    assert after["temperature"] > 0
    reward = load_reward("alignkit_rewards.look_ahead:LookAhead", model=str(folder / "model"))
    scores = reward(["it was dull .\n"] * 2, ["so sorry", "so what"])
    assert scores[0] > 0.9 and scores[1] < 0.1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"of": {"use": "sst2"}}, "sst2 gives text, label and lacks prompt, reference, next_turn; use dialogues"),
        ({"of": {"turns": 1}}, "of is a mapping with `use`"),
        ({"of": {"use": "dailydialog", "turn": 1}}, "of: .*did you mean 'turns'"),
        ({"labeller": {"use": "sentimnt"}}, "labeller: .*sentimnt"),
    ],
)
def test_what_cannot_be_labelled_is_refused_before_anything_is_read(changed, message):
    settings = {**LABELLED, **changed}
    with pytest.raises(DataError, match=message):
        load_data("look_ahead", **settings)
    assert data_problems("look_ahead", settings)
