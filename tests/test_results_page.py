"""The results page says what the runs say: recomputed by hand here, and up to date in the repository."""

import doctest
import importlib.util
import json
import re
import shutil
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


sys.path.append(str(ROOT / "scripts"))  # where a script finds its own modules


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_results, add_result = script("make_results"), script("add_result")
results_pictures, results_reading = script("results_pictures"), script("results_reading")

STUDY = """\
title: Sentiment
text: Three seeds each.
columns: {reward: reward, kl: KL (nats)}
plot: {x: kl, x_label: KL (nats), y: {reward: held-out reward}}
"""


@pytest.fixture
def docs(tmp_path):
    """Two methods, three seeds, known figures."""
    for method, gain in (("ppo", 0.4), ("rloo", 0.2)):
        for seed in (1, 2, 3):
            folder = tmp_path / "results" / "sentiment" / method / f"seed-{seed}"
            folder.mkdir(parents=True)
            results = {
                "before": {"reward": 0.5},
                "after": {"reward": 0.5 + gain + seed / 100, "kl": 10.0 * gain + seed},
            }
            (folder / "results.json").write_text(json.dumps(results))
            rows = [{"step": 0, "eval_reward": 0.5, "eval_kl": 0.0}, {"step": 9, "eval_reward": 0.9, "eval_kl": 5.0}]
            environment = {
                "command": ["alignkit", "train", f"recipes/{method}.yaml", f"training.seed={seed}"],
                "accelerators": [], "processor": "Some CPU", "threads": 1, "packages": {"torch": "2.13.0", "x": "1"},
                "data": {"train": {"rows": 22347}, "validation": {"rows": 256}},
            }  # fmt: skip
            (folder / "environment.json").write_text(json.dumps(environment))
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "results" / "sentiment" / "study.yaml").write_text(STUDY)
    return tmp_path


def test_the_table_holds_mean_and_spread_over_seeds(docs):
    assert make_results.main([], docs) == 0
    text = (docs / "results.md").read_text()
    rewards = [0.91, 0.92, 0.93]
    kls = [5.0, 6.0, 7.0]
    expected = (
        f"| ppo | 3 | {statistics.mean(rewards):.3f} ± {statistics.stdev(rewards):.3f} "
        f"| {statistics.mean(kls):.2f} ± {statistics.stdev(kls):.2f} |"
    )
    assert expected in text
    assert "| before | | 0.500 ± 0.000 | – |" in text
    assert "![held-out reward against KL (nats)](results/sentiment.svg)" in text


def test_every_run_says_its_command_its_data_and_its_machine(docs):
    make_results.main([], docs)
    text = (docs / "results.md").read_text()
    assert "6 runs on Some CPU (1 thread), torch 2.13.0. Data: 22,347 train rows, 256 validation rows." in text
    assert (
        "alignkit train recipes/rloo.yaml training.seed=1\n# likewise with these seeds in the place of 1: 2, 3\n"
        in text
    )


def test_commands_that_differ_in_more_than_the_seed_are_all_there(docs):
    file = docs / "results/sentiment/rloo/seed-2/environment.json"
    own = json.loads(file.read_text())
    own["command"].append("training.learning_rate=1.0")
    file.write_text(json.dumps(own))
    make_results.main([], docs)
    text = (docs / "results.md").read_text()
    for line in ("training.seed=1\n", "training.seed=2 training.learning_rate=1.0\n", "training.seed=3\n"):
        assert f"alignkit train recipes/rloo.yaml {line}" in text


def test_the_examples_of_the_script_hold():
    assert doctest.testmod(make_results).failed == 0 and doctest.testmod(results_pictures).failed == 0


def test_the_plot_shows_every_run_and_is_the_same_each_time(docs):
    make_results.main([], docs)
    first = (docs / "results" / "sentiment.svg").read_bytes()
    make_results.main([], docs)
    assert (docs / "results" / "sentiment.svg").read_bytes() == first
    dots = re.findall(rb'<g id="PathCollection_\d+">.*?</g>\s*</g>', first, flags=re.S)
    # Drawn in this order: each method's three ends, each method's mean, the legend's two samples.
    assert [block.count(b"<use ") for block in dots] == [3, 3, 1, 1, 1, 1]


def test_lines_over_steps_are_means_of_what_the_runs_logged(docs):
    study = docs / "results" / "sentiment" / "study.yaml"
    study.write_text(STUDY + "steps: {ess/share: share that counts, eval_reward: held-out reward}\n")
    with pytest.raises(SystemExit, match="no run has 'ess/share' of `steps`"):
        make_results.main([], docs)
    for seed in (1, 2, 3):
        file = docs / "results" / "sentiment" / "ppo" / f"seed-{seed}" / "metrics.jsonl"
        more = [{"step": step, "ess/share": seed / step} for step in (4, 8, *([9] if seed == 1 else []))]
        file.write_text("\n".join([file.read_text(), *map(json.dumps, more)]))
    assert make_results.main([], docs) == 0
    picture = docs / "results" / "sentiment-steps.svg"
    first = picture.read_bytes()
    make_results.main([], docs)
    assert picture.read_bytes() == first
    # by their widths: of ppo three seeds and a mean in both panels, of rloo in the second alone, and a legend for both
    assert (first.count(b"stroke-width: 0.7;"), first.count(b"stroke-width: 1.7;")) == (9, 5)
    assert (
        "![share that counts and held-out reward over steps](results/sentiment-steps.svg)"
        in (docs / "results.md").read_text()
    )
    runs = [run for run in results_reading.read_study(study.parent).runs if run.method == "ppo"]
    lines = [results_pictures.over_steps(run, "ess/share") for run in runs]
    assert lines[0] == {4: 0.25, 8: 0.125, 9: 1 / 9}
    assert results_pictures.mean_line(lines) == {4: pytest.approx(0.5), 8: pytest.approx(0.25)}
    assert results_pictures.over_steps(runs[0], "eval_reward") == {0: 0.5, 9: 0.9}


def test_check_notices_a_page_that_the_runs_do_not_support(docs, capsys):
    make_results.main([], docs)
    assert make_results.main(["--check"], docs) == 0
    page = docs / "results.md"
    page.write_text(page.read_text().replace("0.920", "0.990"))
    assert make_results.main(["--check"], docs) == 1
    assert "make_results.py" in capsys.readouterr().err
    make_results.main([], docs)
    curve = docs / "results" / "sentiment" / "ppo" / "seed-2" / "metrics.jsonl"
    curve.write_text(curve.read_text().rstrip() + '\n{"step": 99, "eval_reward": 0.1}\n')  # in the picture alone
    assert make_results.main(["--check"], docs) == 1
    assert "sentiment.svg is not what the runs say" in capsys.readouterr().err


def test_a_figure_that_a_run_lacks_is_an_error_that_names_it(docs):
    file = docs / "results" / "sentiment" / "ppo" / "seed-2" / "results.json"
    file.write_text(json.dumps({"before": {"reward": 0.5}, "after": {"reward": 0.9}}))
    with pytest.raises(SystemExit, match="'kl' is missing from 'after' of seed 2 of ppo, which has: reward"):
        make_results.main([], docs)


def test_the_page_of_the_repository_is_up_to_date(capsys):
    assert make_results.main(["--check"]) == 0, capsys.readouterr().err


def test_a_published_run_keeps_its_figures_and_loses_its_paths(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text(json.dumps({"before": {"reward": 0.5}, "after": {"reward": 0.9}}))
    (run / "environment.json").write_text(json.dumps({"seed": 7, "python": "/opt/py/bin/python", "torch": "2.13.0"}))
    (run / "recipe.yaml").write_text("model: /data/models/tiny-lm\ntrainer: ppo\n")
    rows = [
        '{"step": 1, "reward": 0.4, "note": "a\u2028b"}',
        '{"step": 5, "eval_reward": 0.6, "epoch": 1.0}',
        '{"step": 5, "ess/share": 0.7, "loss": 2.0}',
        '{"step": 6, "ev',
    ]
    (run / "metrics.jsonl").write_text("\n".join(rows), encoding="utf-8")
    target = add_result.publish(run, "sentiment", "ppo", tmp_path / "results")
    assert target == tmp_path / "results" / "sentiment" / "ppo" / "seed-7"
    assert json.loads((target / "results.json").read_text())["after"] == {"reward": 0.9}
    assert json.loads((target / "environment.json").read_text()) == {"seed": 7, "python": "python", "torch": "2.13.0"}
    assert (target / "recipe.yaml").read_text() == "model: tiny-lm\ntrainer: ppo\n"
    kept = [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]
    assert kept == [{"step": 5, "eval_reward": 0.6}, {"step": 5, "ess/share": 0.7}]


def test_what_was_published_stays_where_a_run_is_not_whole(tmp_path):
    old = tmp_path / "results" / "sentiment" / "ppo" / "seed-7"
    old.mkdir(parents=True)
    (old / "results.json").write_text("{}")
    run, judged = tmp_path / "run", tmp_path / "judged.json"
    run.mkdir()
    (run / "environment.json").write_text(json.dumps({"seed": 7}))
    judged.write_text(json.dumps({"figures": {"bleu_4": 0.3}, "environment": {"seed": 7}}))
    for given in ((run, None), (judged, run)):
        with pytest.raises(SystemExit, match=r"no .*metrics\.jsonl: a finished run has them; nothing was published"):
            add_result.publish(given[0], "sentiment", "ppo", tmp_path / "results", trained=given[1])
    assert [path.name for path in old.iterdir()] == ["results.json"]


def test_what_is_published_loses_every_folder_as_a_card_does():
    command = ["alignkit", "train", "/data/ann smith/ppo.yaml", "model=/data/a,b/lm", "file:///data/ann/x.json"]
    known = ["evaluate", "runs/a", "--evaluation", "/data/ann/alignkit/recipes/look_ahead/ppo.yaml"]
    assert add_result.without_paths(known) == [*known[:3], "recipes/look_ahead/ppo.yaml"]
    assert add_result.without_paths({"command": command, "seed": 7}) == {
        "command": ["alignkit", "train", "ppo.yaml", "model=lm", "x.json"],
        "seed": 7,
    }


def test_judged_systems_their_differences_and_replies(tmp_path):
    environment = {
        "command": ["alignkit", "evaluate", "/srv/me/runs/a"],
        "accelerators": [], "processor": "Some CPU", "threads": 1,
        "packages": {}, "data": {"train": {"rows": 9}, "validation": {"rows": 4}}, "seed": 2,
    }  # fmt: skip
    study = tmp_path / "results" / "look_ahead"
    for system, score in (("mle", 0.4), ("rl", 0.6)):
        file = tmp_path / f"{system}.json"
        rows = [{"prompt": "a", "completion": "secret"}]
        file.write_text(
            json.dumps({"figures": {"judge": score}, "rows": rows, "recipe": {}, "environment": environment})
        )
        add_result.publish(file, "look_ahead", system, tmp_path / "results")
    published = (study / "rl" / "seed-2" / "judged.json").read_text()
    assert "secret" not in published and "/srv" not in published
    (study / "study.yaml").write_text(
        "{title: T, text: t, columns: {judge: the judge}, order: [mle, rl], differences: {judge: judge}}"
    )
    standing = {"mean": 0.6, "difference": 0.2, "interval": [0.1, 0.3]}
    comparison = {
        "systems": ["mle", "rl"], "prompts": 7, "verdicts": ["rl: fine"],
        "figures": {"judge": {"mle": {"mean": 0.4, "interval": None}, "rl": standing}},
    }  # fmt: skip
    found = tmp_path / "comparison.json"
    found.write_text(json.dumps({**comparison, "folders": {"mle": ["/srv/me/mle"]}}))
    add_result.publish(found, "look_ahead", None, tmp_path / "results")
    assert json.loads((study / "comparison.json").read_text()) == comparison
    (study / "replies.json").write_text(
        json.dumps([{"prompt": ["hi", "a|b"], "replies": {"mle": "yes *", "rl": "no"}}])
    )
    assert make_results.main([], tmp_path) == 0
    text = (tmp_path / "results.md").read_text()
    assert "| mle | 1 | 0.400 |\n| rl | 1 | 0.600 |" in text and "| before |" not in text
    assert "same 7 prompts" in text and "| rl | +0.200 (+0.100 to +0.300) |" in text and "rl: fine" in text
    assert "| | hi<br>a\\|b |" in text and "| mle | yes \\* |" in text
    (study / "study.yaml").write_text((study / "study.yaml").read_text().replace("{title", "{verdicts: false, title"))
    assert make_results.main([], tmp_path) == 0
    text = (tmp_path / "results.md").read_text()
    assert "| rl | +0.200 (+0.100 to +0.300) |" in text and "rl: fine" not in text
    (study / "comparison.json").unlink()
    with pytest.raises(SystemExit, match=r"comparison\.json is not there or lacks judge of study.yaml"):
        make_results.main([], tmp_path)


def test_a_column_of_texts_sampled_at_a_temperature(tmp_path):
    environment = {
        "command": ["alignkit", "evaluate", "a"], "accelerators": [], "processor": "Some CPU", "threads": 1,
        "packages": {}, "data": {"train": {"rows": 9}, "validation": {"rows": 4}},
    }  # fmt: skip
    sweep = [{"temperature": t, "figures": {"bleu": t / 4}} for t in (0.5, 1.0)]
    for system, seed, more in (("mle", 1, sweep), ("mle", 2, sweep), ("search", 1, [])):
        found = {"figures": {"bleu": 0.4}, "environment": {**environment, "seed": seed}, "temperatures": more}
        (tmp_path / "judged.json").write_text(json.dumps(found))
        add_result.publish(tmp_path / "judged.json", "asked", system, tmp_path / "results")
    study = tmp_path / "results" / "asked" / "study.yaml"
    study.write_text("{title: T, text: t, columns: {bleu: greedy, bleu@1: sampled}, order: [mle, search]}")
    assert make_results.main([], tmp_path) == 0
    text = (tmp_path / "results.md").read_text()
    assert "| mle | 2 | 0.400 ± 0.000 | 0.250 ± 0.000 |\n| search | 1 | 0.400 | – |" in text
    study.write_text("{title: T, text: t, columns: {bleu@0.7: sampled}, order: [mle, search]}")
    with pytest.raises(
        SystemExit, match=r"seed 1 of mle was not judged at temperature 0\.7 \(but at: 0\.5, 1\); judge"
    ):
        make_results.main([], tmp_path)
    study.write_text("{title: T, text: t, columns: {blue@1.0: sampled}, order: [mle, search]}")
    with pytest.raises(SystemExit, match=r"'blue@1\.0' is missing from 'after' of seed 1 of mle, which has: bleu"):
        make_results.main([], tmp_path)
    study.write_text("{title: T, text: t, columns: {bleu@1.0: sampled}, order: [mle, search]}")
    assert make_results.main([], tmp_path) == 0
    assert "| mle | 2 | 0.250 ± 0.000 |" in (tmp_path / "results.md").read_text()
    shutil.rmtree(study.parent / "mle")
    study.write_text("{title: T, text: t, columns: {bleu@1: sampled}, order: [search]}")
    with pytest.raises(SystemExit, match=r"no run has bleu@1; judge with"):
        make_results.main([], tmp_path)


def test_a_judged_run_keeps_how_it_was_trained(tmp_path):
    run, judged = tmp_path / "run", tmp_path / "judged.json"
    run.mkdir()
    logged = [{"step": 1, "loss": 2.0, "ess/share": 0.5}, {"step": 2, "loss": 1.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    judged.write_text(json.dumps({"figures": {"bleu_4": 0.3}, "environment": {"seed": 4}}))
    folder = add_result.publish(judged, "captions", "GCN", tmp_path / "results", trained=run)
    read = results_reading.read_run(folder)
    assert (read.method, read.seed, read.after) == ("GCN", 4, {"bleu_4": 0.3})
    assert read.curve == [{"step": 1, "ess/share": 0.5}]
    (run / "environment.json").write_text(json.dumps({"seed": 4}))
    with pytest.raises(SystemExit, match=r"goes with a file of `alignkit evaluate --output`, which .*run is not"):
        add_result.publish(run, "captions", "GCN", tmp_path / "results", trained=run)


def test_published_runs_that_no_table_shows_are_named(docs):
    (docs / "results" / "sentiment" / "study.yaml").unlink()
    for more in ([], ["--check"]):
        with pytest.raises(SystemExit, match=r"no study\.yaml in .*sentiment: published runs that no table would show"):
            make_results.main(more, docs)
