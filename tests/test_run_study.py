"""A study runs in the right order, goes on where it was stopped, and its files say what the recipes understand."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from alignkit.recipe import load_recipe
from tests.test_results_page import ROOT, script

run_study, study_plan = script("run_study"), script("study_plan")

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
        (tmp_path / "recipes" / f"{name}.yaml").write_text("trainer: sft\nrate: 1\n")
    folder = tmp_path / "docs" / "results" / "small"
    folder.mkdir(parents=True)
    (folder / "runs.yaml").write_text(PLAN)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "broken.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_study, "ROOT", tmp_path)
    monkeypatch.setattr(run_study, "RESULTS", tmp_path / "docs" / "results")
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
        "# 3 jobs of seeds 7; nothing is published",
        "# mle-7: to do", "# discriminator-7: after mle-7", "# gan-7: after discriminator-7, mle-7",
    ]  # fmt: skip
    assert not (study / "calls.txt").exists() and not (study / "runs").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("method: MLE", "metod: MLE"), "mle: unknown metod"),
        (("seeds: [1, 2]", ""), "seeds: expected a list of whole numbers"),
        (("seeds: [1, 2]", "seeds: 3"), "seeds: expected a list of whole numbers.* got 3"),
        (("of: gan", "of: gan, recipe: recipes/gan.yaml"), "searched: either recipe or of"),
        (("of: gan", "of: gans"), "searched: of names no step that has a recipe"),
        (("of: gan", "of: searched"), "searched: of names no step that has a recipe"),
        (("of: gan", "of: gan, with: [a=1]"), "searched: with belongs to recipe"),
        (("method: 'GAN, MCTS'", ""), "searched: a judgement needs a method"),
        (("method: GAN}", "method: MLE}"), "method 'MLE': of two steps"),
        (("recipes/d.yaml", "recipes/e.yaml"), "there is no recipes/e.yaml"),
        (("[model=$mle/model]", "[model=$lm/model]"), "discriminator names lm; runs there are of: mle, discriminator"),
        (("[model=$mle/model]", "[model=$searched/model]"), "discriminator names searched; runs there are of"),
        (("[model=$mle/model]", "[model=$gan/model]"), "these wait for each other: .*gan-1"),
        (("mle: {recipe: recipes/mle.yaml, method: MLE}", "mle:"), "mle: expected recipe or of.* got None"),
        ((PLAN, "- mle"), "expected keys seeds, judge and steps; got list"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused_before_anything_runs(study, change, said):
    plan = study / "docs" / "results" / "small" / "runs.yaml"
    assert change[0] in PLAN
    plan.write_text(PLAN.replace(*change))
    for more in ([], ["--list"]):
        with pytest.raises(SystemExit, match=said):
            run_study.main(["small", *more])
    assert not (study / "calls.txt").exists()


def edited(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "said", "gone"),
    [
        (
            "recipes/gan.yaml", "rate: 1", "rate: 2", "recipes/gan.yaml.rate was 1 and is 2",
            "runs/small/gan-1 runs/small/judged/gan-1.json runs/small/judged/searched-1.json",
        ),
        (
            "recipes/mle.yaml", "rate: 1", "rate: 2", "discriminator-1: comes from mle-1, which is another one now",
            "runs/small/mle-1 runs/small/judged/mle-1.json runs/small/discriminator-1 runs/small/gan-1 "
            "runs/small/judged/gan-1.json runs/small/judged/searched-1.json",
        ),
        (
            "docs/results/small/runs.yaml", "d=$discriminator/d", "d=$discriminator/e",
            "d was 'runs/small/discriminator-1/d' and is 'runs/small/discriminator-1/e'",
            "runs/small/gan-1 runs/small/judged/gan-1.json runs/small/judged/searched-1.json",
        ),
        (
            "docs/results/small/runs.yaml", "0.5 1.0", "0.5 0.7", "1.0 is gone; 0.7 is new",
            "runs/small/judged/mle-1.json runs/small/judged/gan-1.json",
        ),
        (
            "recipes/gan.yaml", "rate: 1", "rate: 1\n# a remark", None, None,
        ),
    ],
)  # fmt: skip
def test_what_was_done_with_other_settings_is_refused_and_named(study, file, old, new, said, gone):
    assert run_study.main(["small", "--seeds", "1"]) == 0
    done = calls(study)
    edited(study / file, old, new)
    if said is None:
        assert run_study.main(["small", "--seeds", "1"]) == 0 and calls(study) == done
        return
    with pytest.raises(SystemExit) as refused:
        run_study.main(["small", "--seeds", "1"])
    assert said in str(refused.value) and str(refused.value).endswith(f"to do it again: rm -r {gone}")
    assert calls(study) == done
    for place in gone.split():
        (shutil.rmtree if (study / place).is_dir() else Path.unlink)(study / place)
    assert run_study.main(["small", "--seeds", "1"]) == 0
    assert len(calls(study)) == len(done) + len(gone.split())


def test_what_comes_from_a_run_that_was_deleted_is_refused(study):
    assert run_study.main(["small", "--seeds", "1"]) == 0
    shutil.rmtree(study / "runs/small/discriminator-1")
    with pytest.raises(SystemExit, match="gan-1: comes from discriminator-1, which is not there"):
        run_study.main(["small", "--seeds", "1"])
    # another seed has its own
    assert run_study.main(["small", "--seeds", "2"]) == 0


def test_a_run_from_elsewhere_is_refused(study):
    (study / "runs/small/mle-1").mkdir(parents=True)
    with pytest.raises(SystemExit, match="mle-1: what it was asked was not written down"):
        run_study.main(["small"])


def test_what_cannot_be_published_does_not_keep_the_others_from_running(study, capsys):
    edited(study / "program.py", '    (run / "metrics', '    if "mle-1" not in str(run): (run / "metrics')
    assert run_study.main(["small"]) == 1
    said = capsys.readouterr().err
    assert "mle-1: was not published: SystemExit" in said and "gan-1: left out" in said and "-2" not in said
    assert (study / "docs/results/small/GAN/seed-2/judged.json").exists()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_ends_what_it_began_and_goes_on_later(study, sign):
    begin = 'if what == "train":'
    slow = f'{begin}\n    if (root / "slow.txt").exists():\n        (root / "child.txt").write_text("here")\n'
    edited(study / "program.py", begin, slow + "        import time; time.sleep(100)")
    (study / "slow.txt").write_text("")
    code = (
        # as from a terminal: what a script starts in the background ignores Ctrl-C
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'scripts')!r}]\n"
        f"from pathlib import Path; import run_study; run_study.ROOT = Path({str(study)!r})\n"
        "run_study.RESULTS = run_study.ROOT / 'docs/results'\n"
        f"run_study.ALIGNKIT = {run_study.ALIGNKIT!r}\nsys.exit(run_study.main(['small', '--seeds', '1']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (study / "child.txt").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        begun = time.monotonic()
        process.send_signal(sign)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and time.monotonic() - begun < 20
    assert said == "stopped; the same command goes on from here\n"
    assert calls(study) == ["train recipes/mle.yaml"]  # nothing was begun behind it
    (study / "slow.txt").unlink()
    assert run_study.main(["small", "--seeds", "1"]) == 0


def test_workers_are_one_or_more(study, capsys):
    with pytest.raises(SystemExit):
        run_study.main(["small", "--workers", "0"])
    assert "--workers: expected 1 or more, got 0" in capsys.readouterr().err


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
    jobs = study_plan.jobs_of(study_plan.read_plan(plan), Path("runs"), [2])
    trained = {}
    for job in jobs:
        if job.trains:
            trained[job.run] = job.trains[1], [word for word in job.trains[2:] if "=" in word]
            recipe = load_recipe(*trained[job.run])
            assert recipe.training["seed"] == 2 and recipe.training["output_dir"] == str(job.run)
        if job.judges:
            name, overrides = trained[job.run]
            load_recipe(name, [*overrides, *(word for word in job.judges[2:] if "=" in word)])
    study = plan.parent / "study.yaml"
    if study.exists():  # published already
        order = yaml.safe_load(study.read_text())["order"]
        assert set(order) <= {job.method for job in jobs}


PUBLISHED = sorted((ROOT / "docs" / "results").glob("*/*/seed-*/judged.json"))
PUBLISHED = [file for file in PUBLISHED if (file.parents[2] / "runs.yaml").exists()]


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: "-".join(file.parts[-4:-1]))
def test_what_is_published_was_trained_with_the_settings_of_today(file, monkeypatch):
    """Figures of a recipe that changed since would be figures of nothing that can be run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ALIGNKIT_DATA", str(ROOT))
    seed = int(file.parent.name.removeprefix("seed-"))
    jobs = study_plan.jobs_of(study_plan.read_plan(file.parents[2] / "runs.yaml"), Path("runs"), [seed])
    [judged] = [job for job in jobs if job.method == file.parents[1].name]
    [trained] = [job for job in jobs if job.run == judged.run and job.trains]
    today = load_recipe(trained.trains[1], [word for word in trained.trains[2:] if "=" in word]).to_dict()
    was = json.loads(file.read_text())["recipe"]
    for settings in (today, was):
        settings["training"].pop("output_dir")
        for part in (settings["data"], *settings.get("rewards", {}).values()):
            for told in ("model", "learned in", "dtype"):  # places, and what the processor computes fast in
                part.pop(told, None)
        del settings["model"], settings["evaluation"]
    assert was == today
