"""The plain-Python twin of a recipe gives the recipe's figures, to the last bit."""

import importlib.util
import json
from pathlib import Path

import pytest

from alignkit.recipe import load_recipe
from alignkit.run import run_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
# What depends on the clock.
TIMED = ("phase/", "step_time", "runtime", "per_second", "epoch_time", "time")


def by_hand():
    spec = importlib.util.spec_from_file_location("ppo_by_hand", RECIPES / "ppo_by_hand.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def figures(rows):
    """The learning and evaluation rows, without what the clock decides."""
    kept = [row for row in rows if "loss" in row or "eval_reward" in row]
    return [{k: v for k, v in row.items() if not any(part in k for part in TIMED)} for row in kept]


@pytest.fixture(scope="module")
def both(tiny_quickstart, tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins")
    recipe = load_recipe(RECIPES / "quickstart.yaml", [*tiny_quickstart, f"training.output_dir={folder / 'recipe'}"])
    run_recipe(recipe)
    lines = [json.loads(line) for line in (folder / "recipe" / "metrics.jsonl").read_text().splitlines()]
    settings = {key: recipe.training[key] for key in recipe.training if key != "output_dir"}
    trainer = by_hand()(
        recipe.model["name"],
        recipe.rewards["sentiment"]["model"],
        train_size=recipe.data["train_size"],
        validation_size=recipe.data["validation_size"],
        prompts=recipe.evaluation["prompts"],
        **{**settings, "output_dir": str(folder / "by_hand"), "use_cpu": recipe.config().use_cpu},
    )
    return lines, trainer, folder


def test_every_logged_figure_of_training_is_equal(both):
    lines, trainer, _ = both
    # `Trainer.train` starts a new history, and evaluation after training is logged by both
    recipe, hand = figures(lines), figures(trainer.state.log_history)
    learned = [row for row in recipe if "loss" in row]
    assert len(learned) == 4 and len(learned[0]) > 25
    assert [{k: v for k, v in row.items() if k != "epoch"} for row in learned] == [
        {k: v for k, v in row.items() if k != "epoch"} for row in hand if "loss" in row
    ]


def test_the_evaluations_in_between_are_equal(both):
    lines, trainer, _ = both
    recipe = {row["step"]: row for row in figures(lines) if "eval_reward" in row}
    hand = {row["step"]: row for row in figures(trainer.state.log_history) if "eval_reward" in row}
    for step in (2, 4):
        ours = {k: v for k, v in recipe[step].items() if k.startswith("eval_")}
        assert ours == {k: v for k, v in hand[step].items() if k.startswith("eval_")}
        assert {"eval_reward", "eval_kl", "eval_distinct_2", "eval_perplexity"} <= set(ours)


def test_the_models_are_equal_byte_for_byte(both):
    _, _, folder = both
    for name in ("model.safetensors", "value_head.safetensors"):
        assert (folder / "recipe" / "model" / name).read_bytes() == (folder / "by_hand" / "model" / name).read_bytes()


def test_the_twins_own_settings_are_those_of_the_recipe():
    """The defaults written into the script, which the runs above override, are the recipe's."""
    recipe = load_recipe(RECIPES / "quickstart.yaml")
    source = (RECIPES / "ppo_by_hand.py").read_text()
    for key, value in recipe.training.items():
        if key in ("output_dir", "learning_rate"):
            continue
        assert f'"{key}": {value!r},'.replace("'", '"') in source, key
    assert (
        f'"learning_rate": {1.0e-4},'.replace("0.0001", "1.0e-4") in source and recipe.training["learning_rate"] == 1e-4
    )
    for value in (recipe.data["train_size"], recipe.data["validation_size"], recipe.evaluation["prompts"]):
        assert f": int = {value}," in source
    assert list(recipe.evaluation["metrics"]) == ["reward", "diversity", "repetition", "length", "perplexity"]
