"""Every recipe that the project ships is found, has a header, and dry-runs without network, data or models."""

import os
import re
from pathlib import Path

import pytest

from alignkit.cli import main
from alignkit.errors import RecipeError
from alignkit.recipe import TRAINERS, load_recipe
from alignkit.run.models import recipe_that_writes

ROOT = Path(__file__).resolve().parents[1]
# recipes/accelerate holds launcher settings, which are no recipes
FOUND = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if "accelerate" not in path.parts)
NAMES = [path.relative_to(ROOT).as_posix() for path in FOUND]
TWINS = sorted((ROOT / "recipes").rglob("*_by_hand.py"))


def test_no_recipe_is_lost():
    assert len(NAMES) == 68
    assert len(TWINS) == 1
    used = {load_recipe(ROOT / name).trainer for name in NAMES}
    assert used == set(TRAINERS), "a trainer without a recipe, or a recipe of an unknown trainer"


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_command_hardware_and_what_it_shows(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    header = text[: re.search(r"^[^#]", text, flags=re.M).start()]
    assert f"alignkit train {name}" in header, "the command that runs it"
    assert re.search(r"^# Hardware: \S", header, flags=re.M)
    assert re.search(r"^# Shows: \S", header, flags=re.M)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_a_twins_header_says_the_same(twin):
    header = twin.read_text(encoding="utf-8").split('"""')[1]
    assert f"python {twin.relative_to(ROOT).as_posix()}" in header
    assert "Hardware:" in header and "Shows:" in header


@pytest.mark.parametrize("name", NAMES)
def test_it_dry_runs_offline_with_nothing_on_the_machine(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("ALIGNKIT_DATA", raising=False)
    monkeypatch.delenv("ALIGNKIT_MODELS", raising=False)
    assert main(["train", str(ROOT / name), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "ok         recipe:" in said
    # what is not here is said, and nothing is claimed for it
    if "quickstart" not in name and "oracle" not in name:
        assert "unchecked" in said
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif("ALIGNKIT_DATA" not in os.environ, reason="needs ALIGNKIT_DATA, a folder with imdb and sst2")
def test_it_dry_runs_on_real_data(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(ROOT / name), "--dry-run"]) == 0
    said = capsys.readouterr().out
    # a data set that a model of ours labels is looked at once that model has been trained
    assert "ok         data" in said or "the labeller 'sentiment' cannot label" in said


def test_training_names_every_model_that_another_recipe_has_to_write_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "recipes/quickstart.yaml"]) != 0
    said = capsys.readouterr().err
    for name in ("lm", "classifier"):
        assert f"it is written by: alignkit train recipes/quickstart/{name}.yaml" in said
    assert not (tmp_path / "runs/quickstart/recipe.yaml").exists()
    assert main(["train", "recipes/quikstart.yaml"]) != 0
    assert "there is no file 'recipes/quikstart.yaml'; did you mean 'quickstart.yaml'?" in capsys.readouterr().err


def test_a_recipe_cannot_have_a_decoder_of_ones_own():
    with pytest.raises(RecipeError, match=r"training\.proposal: 'own' is a decoder passed to the trainer in Python"):
        load_recipe(ROOT / "recipes/cooperative/coco_gcn_policy.yaml", ["training.proposal=own"])


def test_a_dry_run_names_the_recipe_that_writes_a_missing_model(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "recipes/quickstart.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "it is written by: alignkit train recipes/quickstart/lm.yaml" in said
    assert "it is written by: alignkit train recipes/quickstart/classifier.yaml" in said
    assert "2 not checked" in said
    assert recipe_that_writes("runs/quickstart/lm") == recipe_that_writes("runs/quickstart/lm/model")
    learned = recipe_that_writes("runs/cooperative/oracle_discriminator/rewards/discriminator")
    assert learned == "recipes/cooperative/oracle_discriminator.yaml"
    assert [recipe_that_writes(name) for name in ("runs/no-such", "runs", "model", "gpt2")] == [None] * 4
