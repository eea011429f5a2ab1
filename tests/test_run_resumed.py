"""What a resumed run keeps, and what it refuses to go on from."""

import shutil

import pytest
import yaml
from test_run import lines_of, tiny_recipe

from alignkit.cli import main
from alignkit.errors import AlignkitError
from alignkit.run import run_recipe

SAVING = ["training.save_strategy=steps", "training.save_steps=3", "training.max_steps=8"]


@pytest.fixture(scope="module")
def whole(tiny_quickstart, tmp_path_factory):
    """Two rollouts of four steps, saved within the first and within the second."""
    folder = tmp_path_factory.mktemp("whole")
    return run_recipe(
        tiny_recipe("ppo", tiny_quickstart, folder, *SAVING, "training.num_iterations=4", "training.logging_steps=2")
    )


def samples(folder):
    return [(row["phase"], row["step"], row["prompt"], row["completion"]) for row in lines_of(folder / "samples.jsonl")]


def test_each_rollout_is_shown_once(whole):
    assert [step for phase, step, *_ in samples(whole) if phase == "train"] == [1, 1, 6, 6]  # steps 1 to 4, 5 to 8


@pytest.mark.parametrize("step", [3, 6])
def test_samples_within_a_rollout_are_those_of_the_unbroken_run(step, whole, tiny_quickstart, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    for later in broken.glob("checkpoint-*"):
        if int(later.name.rpartition("-")[2]) > step:
            shutil.rmtree(later)
    (broken / "results.json").unlink()
    run_recipe(
        tiny_recipe("ppo", tiny_quickstart, broken, *SAVING, "training.num_iterations=4", "training.logging_steps=2"),
        resume=True,
    )
    assert samples(broken) == samples(whole)


def unfinished(whole, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    (broken / "results.json").unlink()
    return broken


def test_another_adapter_is_named_before_anything_is_loaded(whole, tiny_quickstart, tmp_path):
    broken = unfinished(whole, tmp_path)
    before = (broken / "recipe.yaml").read_text()
    with pytest.raises(AlignkitError, match=r"begun with another adapter \(adapter: None, now: .*'r': 2"):
        run_recipe(tiny_recipe("ppo", tiny_quickstart, broken, *SAVING, "adapter.r=2"), resume=True)
    assert (broken / "recipe.yaml").read_text() == before


def test_fewer_steps_than_are_done_are_refused(whole, tiny_quickstart, tmp_path):
    broken = unfinished(whole, tmp_path)
    with pytest.raises(AlignkitError, match=r"has 8 steps behind it already \(checkpoint-8\), more than .*max_steps=4"):
        run_recipe(tiny_recipe("ppo", tiny_quickstart, broken, *SAVING, "training.max_steps=4"), resume=True)
    assert not (broken / "recipe_begun.yaml").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.learning_rate=0.5", "training.learning_rate: .*, now: 0.5"),
        ("training.weight_decay=0.5", "training.weight_decay: None, now: 0.5"),
        ("training.seed=7", "training.seed: .*, now: 7"),
    ],
)
def test_what_a_checkpoint_brings_along_cannot_be_changed(setting, said, whole, tiny_quickstart, tmp_path):
    broken = unfinished(whole, tmp_path)
    before = (broken / "recipe.yaml").read_text()
    with pytest.raises(AlignkitError, match=rf"begun with another .* \({said}\), which its checkpoints bring along"):
        run_recipe(tiny_recipe("ppo", tiny_quickstart, broken, *SAVING, setting), resume=True)
    assert (broken / "recipe.yaml").read_text() == before


def test_what_else_changed_is_told(whole, tiny_quickstart, tmp_path, capsys):
    broken = unfinished(whole, tmp_path)
    recipe = tiny_recipe(
        "ppo", tiny_quickstart, broken, *SAVING, "training.num_iterations=4", "training.logging_steps=1",
        "training.max_steps=9", "evaluation.seed=5",
    )  # fmt: skip
    run_recipe(recipe, resume=True)
    said = capsys.readouterr().out
    assert "changed since the run was begun: training.max_steps (8 before, 9 now), training.logging_steps (2 " in said
    begun = yaml.safe_load((broken / "recipe_begun.yaml").read_text())  # nothing is lost by options that were forgotten
    assert begun["training"]["max_steps"] == 8 and str(broken / "recipe_begun.yaml") in said
    assert "evaluation.seed (None before, 5 now)" in said
    assert lines_of(broken / "metrics.jsonl")[-1]["step"] == 9
    (broken / "results.json").unlink()  # as if it had been killed once more
    run_recipe(
        tiny_recipe("ppo", tiny_quickstart, broken, *SAVING, "training.num_iterations=4", "training.max_steps=10"),
        resume=True,
    )
    assert "training.max_steps (8 before, 10 now)" in capsys.readouterr().out
    assert yaml.safe_load((broken / "recipe_begun.yaml").read_text()) == begun


def test_overrides_may_come_behind_options(whole, tmp_path, capsys):
    recipe = str(whole / "recipe.yaml")
    assert main(["train", recipe, "--overwrite", "training.max_stepz=1", "--dry-run"]) == 2
    assert "did you mean 'max_steps'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", recipe, "--overwrite", "nonsense"])
    assert "unrecognized arguments: nonsense" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["env", "a=1"])


def test_a_dry_run_sees_a_folder_that_cannot_be_written(whole, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    recipe = str(whole / "recipe.yaml")
    assert main(["train", recipe, f"training.output_dir={tmp_path}/file/below", "--dry-run"]) == 2
    assert "nothing can be written to" in capsys.readouterr().err


def test_merging_what_is_not_there_says_so(tmp_path, capsys):
    assert main(["merge", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "none" in said and "whole model already" not in said
    assert main(["merge", "no-such-model", str(tmp_path / "out")]) == 2
    assert "there is no folder 'no-such-model'" in capsys.readouterr().err
