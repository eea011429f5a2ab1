"""A study runs in the right order, goes on where it was stopped, and its files say what the recipes understand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.recipe import load_recipe
from tests.test_results_page import ROOT, script

run_study = script("run_study")

PLAN = """\
seeds: [1, 2]
judge: --temperatures 0.5 1.0
shared:
  - &start [model=$mle/model, x.seed=$seed]
steps:
  mle: {recipe: recipes/mle.yaml, method: MLE}
  discriminator: {recipe: recipes/d.yaml, with: [model=$mle/model]}
  gan: {recipe: recipes/gan.yaml, with: [*start, d=$discriminator/d], method: GAN}
  searched: {of: gan, judge: "'evaluation.decoder={use: mcts}'", method: 'GAN, MCTS'}
"""

# Stands in for the command line: notes its words, and writes what a run or a judgement leaves.
PROGRAM = """\
import json, pathlib, sys
what, name, *words = sys.argv[1:]
root = pathlib.Path.cwd()
with open("calls.txt", "a") as calls:
    print(what, name, *words, file=calls)
if any(word in (root / "broken.txt").read_text().split() for word in (name, *words)):
    sys.exit("it broke")
given = dict(word.split("=", 1) for word in words if "=" in word)
if what == "train":
    run = pathlib.Path(given["training.output_dir"])
    run.mkdir(parents=True)
    (run / "results.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 1, "eval_kl": 0.5}\\n')
else:
    judged = {"figures": {"bleu": 0.5}, "environment": {"seed": int(name.rsplit("-", 1)[1])}}
    pathlib.Path(words[words.index("--output") + 1]).write_text(json.dumps(judged))
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A project with one study; calls of `alignkit` go to the program above."""
    for name in ("mle", "d", "gan"):
        (tmp_path / "recipes").mkdir(exist_ok=True)
        (tmp_path / "recipes" / f"{name}.yaml").write_text("trainer: sft\n")
    folder = tmp_path / "docs" / "results" / "small"
    folder.mkdir(parents=True)
    (folder / "runs.yaml").write_text(PLAN)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "broken.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_study, "ROOT", tmp_path)
    monkeypatch.setattr(run_study, "RESULTS", tmp_path / "docs" / "results")
    # three words, as the real one has
    monkeypatch.setattr(run_study, "ALIGNKIT", [sys.executable, "-B", str(tmp_path / "program.py")])
    return tmp_path


def calls(study: Path) -> list[str]:
    lines = (study / "calls.txt").read_text().splitlines()
    return [" ".join(line.split()[:2]) for line in lines]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_each_step_waits_for_what_it_names_and_is_published(study, workers):
    assert run_study.main(["small", "--workers", str(workers)]) == 0
    done = (study / "calls.txt").read_text().splitlines()
    for seed in (1, 2):
        own = [line for line in done if f"-{seed}" in line]
        order = [next(i for i, line in enumerate(own) if sign in line) for sign in (
            f"output_dir=runs/small/mle-{seed}", f"output_dir=runs/small/discriminator-{seed}",
            f"output_dir=runs/small/gan-{seed}", "evaluation.decoder",
        )]  # fmt: skip
        assert order == sorted(order) and len(own) == 6
        assert (
            f"train recipes/gan.yaml --resume training.seed={seed} training.output_dir=runs/small/gan-{seed} "
            in own[order[2]]
        )
        assert own[order[2]].endswith(
            f"model=runs/small/mle-{seed}/model x.seed={seed} d=runs/small/discriminator-{seed}/d"
        )
        assert f"evaluate runs/small/gan-{seed} evaluation.decoder={{use: mcts}} --output" in own[order[3]]
        published = study / "docs" / "results" / "small"
        assert json.loads((published / "GAN, MCTS" / f"seed-{seed}" / "judged.json").read_text())["figures"]
        assert (published / "GAN" / f"seed-{seed}" / "metrics.jsonl").exists()
        assert not (published / "GAN, MCTS" / f"seed-{seed}" / "metrics.jsonl").exists()
    assert len(done) == 12
    assert run_study.main(["small"]) == 0 and len(calls(study)) == 12


def test_what_failed_is_named_and_what_needs_it_left_out_and_the_rest_goes_on(study, capsys):
    (study / "broken.txt").write_text("training.output_dir=runs/small/discriminator-1")
    assert run_study.main(["small"]) == 1
    said = capsys.readouterr().err
    assert "discriminator-1: alignkit train ended with status 1; its words are in runs/small/logs" in said
    assert "gan-1: left out, for want of discriminator-1" in said and "searched-1: left out, for want of gan-1" in said
    assert "-2" not in said and "mle-1" not in said
    assert "it broke" in (study / "runs/small/logs/discriminator-1.txt").read_text()
    before = len(calls(study))
    (study / "broken.txt").write_text("")
    assert run_study.main(["small"]) == 0
    # the training that broke, the system behind it with its judgement, and the second judgement of that
    assert [call.split()[0] for call in calls(study)[before:]] == ["train", "train", "evaluate", "evaluate"]


def test_a_judgement_that_broke_is_made_up_for_without_training_again(study):
    (study / "broken.txt").write_text("runs/small/mle-2")
    assert run_study.main(["small", "--steps", "mle"]) == 1
    (study / "broken.txt").write_text("")
    assert run_study.main(["small", "--steps", "mle"]) == 0
    kinds = [call.split()[0] for call in calls(study)]
    assert kinds == ["train", "evaluate", "train", "evaluate", "evaluate"]


def test_one_system_brings_what_it_starts_from_and_nothing_is_run_for_a_list(study, capsys):
    assert run_study.main(["small", "--seeds", "7", "--steps", "gan", "--list"]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line[0] == "#"] == [
        "# mle-7: to do", "# discriminator-7: after mle-7", "# gan-7: after discriminator-7, mle-7",
    ]  # fmt: skip
    assert not (study / "calls.txt").exists() and not (study / "runs").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("method: MLE", "metod: MLE"), "mle: unknown metod"),
        (("seeds: [1, 2]", ""), "no seeds"),
        (("of: gan", "of: gan, recipe: recipes/gan.yaml"), "searched: either recipe or of"),
        (("of: gan", "of: gans"), "searched: of names no step"),
        (("recipes/d.yaml", "recipes/e.yaml"), "there is no recipes/e.yaml"),
        (("[model=$mle/model]", "[model=$lm/model]"), "discriminator names lm; there are: mle, discriminator"),
        (("[model=$mle/model]", "[model=$gan/model]"), "these wait for each other"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(study, change, said):
    plan = study / "docs" / "results" / "small" / "runs.yaml"
    plan.write_text(PLAN.replace(*change))
    with pytest.raises(SystemExit, match=said):
        run_study.main(["small"])


def test_a_command_that_leaves_nothing_has_not_ended_well(study, capsys):
    (study / "program.py").write_text("")
    assert run_study.main(["small", "--steps", "mle", "--seeds", "1"]) == 1
    assert "mle-1: alignkit train ended well and left no result" in capsys.readouterr().err


def test_the_command_is_alignkits():
    said = subprocess.run([*run_study.ALIGNKIT, "--help"], capture_output=True, text=True, check=True).stdout
    assert "train" in said and "evaluate" in said


def test_a_study_or_a_step_that_is_not_there_is_answered_with_those_that_are(study):
    with pytest.raises(SystemExit, match="studies that can be run: small"):
        run_study.main(["large"])
    with pytest.raises(SystemExit, match="there are mle, discriminator, gan, searched"):
        run_study.main(["small", "--steps", "gcn"])


PLANS = sorted((ROOT / "docs" / "results").glob("*/runs.yaml"))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.parent.name)
def test_the_recipes_understand_every_plan_and_the_page_has_its_rows(plan, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ALIGNKIT_DATA", str(ROOT))
    jobs = run_study.jobs_of(run_study.read_plan(plan), Path("runs"), [2])
    trained = {}
    for job in jobs:
        if job.trains:
            trained[job.run] = job.trains[4], [word for word in job.trains[5:] if "=" in word]
            recipe = load_recipe(*trained[job.run])
            assert recipe.training["seed"] == 2 and recipe.training["output_dir"] == str(job.run)
        if job.judges:
            name, overrides = trained[job.run]
            load_recipe(name, [*overrides, *(word for word in job.judges[5:] if "=" in word)])
    study = plan.parent / "study.yaml"
    if study.exists():  # published already
        order = run_study.yaml.safe_load(study.read_text())["order"]
        assert sorted(job.method for job in jobs if job.method) == sorted(order)
