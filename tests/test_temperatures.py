"""`alignkit evaluate --temperatures`, the curves that are drawn of it, and the results page that shows them."""

import json
import re
import statistics

import numpy as np
import pytest
from test_results_page import add_result, make_results, results_pictures

from alignkit.cli import main
from alignkit.errors import DataError
from alignkit.recipe import load_recipe
from alignkit.report.temperatures import curve, read_temperatures, write_curves
from alignkit.run import run_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "oracle.yaml").write_text(f"""
trainer: sft
model: {{scratch: {{architecture: lstm, hidden_size: 16, layers: 1, tokenizer: words, context: 16}}}}
data: {{use: oracle, vocabulary: 12, length: 6, train_size: 400, validation_size: 40}}
training: {{max_steps: 25, per_device_train_batch_size: 16, learning_rate: 1e-2, max_length: 16, save_strategy: no,
  output_dir: {folder}/run}}
evaluation:
  prompts: 40
  max_new_tokens: 6
  metrics: {{oracle_nll: {{vocabulary: 12, length: 6}}, bleu: {{}}, self_bleu: {{}}}}
""")
    return run_recipe(load_recipe(folder / "oracle.yaml"))


@pytest.fixture(scope="module")
def judged(run):
    file = run.parent / "judged.json"
    assert main(["evaluate", str(run), "--temperatures", "0.2", "1.0", "3", "--output", str(file)]) == 0
    return file


def test_each_temperature_has_the_figures_that_it_has_alone(run, judged, tmp_path):
    found = json.loads(judged.read_text())
    assert [one["temperature"] for one in found["temperatures"]] == [0.2, 1.0, 3.0]
    alone = tmp_path / "alone.json"
    assert main(["evaluate", str(run), "evaluation.temperature=0.2", "--output", str(alone)]) == 0
    assert found["temperatures"][0]["figures"] == pytest.approx(json.loads(alone.read_text())["figures"])
    # the rest of the file is at the recipe's own temperature, which is 1
    assert found["temperatures"][1]["figures"] == pytest.approx(found["figures"])
    cold, _, hot = (one["figures"] for one in found["temperatures"])
    assert cold["self_bleu_3"] > hot["self_bleu_3"] and cold["oracle_nll"] < hot["oracle_nll"]
    assert len(found["rows"]) == 40


def test_the_table_has_a_column_a_temperature(run, capsys):
    assert main(["evaluate", str(run), "evaluation.prompts=4", "--temperatures", "0.5", "0"]) == 0
    said = capsys.readouterr().out
    assert "at 0.5" in said and "at 0 " in said and re.search(r"oracle_nll +│? *[\d.]+ +│? *[\d.]+", said)


@pytest.mark.parametrize("wrong", [["-1"], ["1", "1.0"], ["nan"], ["inf"]])
def test_temperatures_that_cannot_be_meant_are_refused(run, wrong, capsys):
    assert main(["evaluate", str(run), "--temperatures", *wrong]) == 2
    assert "--temperatures: expected different numbers from 0 (greedy) on" in capsys.readouterr().err


def sweep(shift, key="bleu_4"):
    return [
        {"temperature": t, "figures": {"self_bleu_4": 0.8 - 0.4 * t + shift, key: 0.5 - 0.1 * t**2 + 2 * shift}}
        for t in (1.2, 0.6, 0.9)
    ]


def test_a_curve_is_the_mean_over_seeds_in_order_of_temperature():
    points = curve([sweep(0.0), sweep(0.02), sweep(0.07)], "self_bleu_4", "bleu_4")
    assert [point.temperature for point in points] == [0.6, 0.9, 1.2]
    assert points[0].x == pytest.approx(0.56 + 0.03) and points[0].y == pytest.approx(0.464 + 0.06)
    assert points[2].y_spread == pytest.approx(2 * statistics.stdev([0.0, 0.02, 0.07]))
    assert curve([sweep(0.0)], "self_bleu_4", "bleu_4")[0].x_spread == 0.0
    with pytest.raises(DataError, match="measured at the same temperatures"):
        curve([sweep(0.0), sweep(0.0)[:2]], "self_bleu_4", "bleu_4")
    with pytest.raises(DataError, match=r"no figure 'rouge_l' at temperature 0\.6.*bleu_4"):
        curve([sweep(0.0)], "self_bleu_4", "rouge_l")


def test_a_picture_of_several_systems_is_written(judged, tmp_path):
    assert write_curves({"mle": [judged]}, tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    files = {}
    for name, shift in (("mle", 0.0), ("gcn", 0.1)):
        files[name] = [tmp_path / f"{name}-{seed}.json" for seed in range(3)]
        for seed, file in enumerate(files[name]):
            file.write_text(json.dumps({"temperatures": sweep(shift + seed / 100)}))
    drawn = write_curves(files, tmp_path / "both.svg").read_text()
    # per system: the mean's line, a thin line a seed, the bars
    assert drawn.count("</g>") > 40 and "<svg" in drawn
    (tmp_path / "plain.json").write_text("{}")
    with pytest.raises(DataError, match="no figures over temperatures"):
        read_temperatures(tmp_path / "plain.json")


def point(one):
    return one["figures"]["self_bleu_4"], one["figures"]["bleu_4"]


def test_the_results_page_shows_the_curves_of_published_runs(tmp_path):
    environment = {
        "command": ["alignkit", "evaluate", "runs/a"], "accelerators": [], "processor": "Some CPU", "threads": 1,
        "packages": {}, "data": {"train": {"rows": 9}, "validation": {"rows": 4}},
    }  # fmt: skip
    study = tmp_path / "results" / "coco"
    for system, shift in (("mle", 0.0), ("gcn", 0.1)):
        for seed in (1, 2):
            file = tmp_path / f"{system}-{seed}.json"
            content = {"figures": sweep(shift)[0]["figures"], "temperatures": sweep(shift + seed / 100), "rows": []}
            file.write_text(json.dumps({**content, "recipe": {}, "environment": {**environment, "seed": seed}}))
            add_result.publish(file, "coco", system, tmp_path / "results")
    about = "{title: T, text: t, columns: {bleu_4: BLEU-4}, curves: {x: self_bleu_4, y: bleu_4}}"
    (study / "study.yaml").write_text(about)
    assert make_results.main([], tmp_path) == 0
    text = (tmp_path / "results.md").read_text()
    assert "(results/coco-temperatures.svg)" in text and "bars and bands are a standard deviation" in text
    assert "Self-BLEU-4 is the same" not in text
    (study / "study.yaml").write_text(about.replace("bleu_4}}", "bleu_4, at: [0.5, 0.9]}}"))
    assert make_results.main([], tmp_path) == 0
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert "BLEU-4 where Self-BLEU-4 is the same" in "".join(lines)
    row = next(line for line in lines if line.startswith("| gcn |") and line.endswith("| – |"))
    sweeps = [sweep(0.1 + seed / 100) for seed in (1, 2)]
    by_hand = [np.interp(0.5, *zip(*sorted(point(one) for one in own), strict=True)) for own in sweeps]
    assert f"| gcn | {statistics.fmean(by_hand):.3f} ± {statistics.stdev(by_hand):.3f} |" in row
    judged = {"mle": [sweep(0.0)], "gcn": sweeps}
    lines = results_pictures.differences_over(judged, "self_bleu_4", "bleu_4")
    assert all(mean == 0 for _, mean, _ in lines["mle"])
    place, mean, spread = min(lines["gcn"], key=lambda line: abs(line[0] - 0.5))
    own, base = (
        [np.interp(place, *zip(*sorted(point(one) for one in seed), strict=True)) for seed in seeds]
        for seeds in (sweeps, [sweep(0.0)])
    )
    assert (mean, spread) == pytest.approx((statistics.fmean(own) - base[0], statistics.stdev(own)))
    (study / "study.yaml").write_text(about)
    assert make_results.main([], tmp_path) == 0
    picture = tmp_path / "results" / "coco-temperatures.svg"
    first = picture.read_bytes()
    assert make_results.main([], tmp_path) == 0 and picture.read_bytes() == first
    (study / "study.yaml").write_text(about.replace("bleu_4}}", "rouge_l}}"))
    with pytest.raises(SystemExit, match="no figure 'rouge_l'"):
        make_results.main([], tmp_path)
    for file in study.glob("*/*/judged.json"):
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "temperatures"}))
    with pytest.raises(
        SystemExit, match="curves takes x, y and at, and runs judged with alignkit evaluate --temperatures"
    ):
        make_results.main([], tmp_path)
