"""The rewards of a finished run as they ended: networks that it saved, and states of the others that learn."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from alignkit.models.locating import RUN_REWARDS
from alignkit.recipe import Recipe
from alignkit.reward import stateful_rewards
from alignkit.trainers.ended_rewards import Ended, read_ended

# What describes a network before it has learned; the saved one knows all of it.
_OF_A_NEW_NETWORK = ("scratch", "tokenizer")


def with_saved_networks(recipe: Recipe, run: Path) -> Recipe:
    """The recipe whose rewards start from the networks that the run saved under their names in `rewards/`.

    A copy where there are any. A network inside a composition has no name in the recipe: `restore_states` has it.
    """
    ended = read_ended(run)
    saved = [name for name in recipe.rewards if ended is not None and name in ended.models]
    if not saved:
        return recipe
    changed = copy.deepcopy(recipe)
    for name in saved:
        spec = {key: value for key, value in recipe.rewards[name].items() if key not in _OF_A_NEW_NETWORK}
        changed.rewards[name] = {**spec, "model": str(run / RUN_REWARDS / name)}
    return changed


def with_origins(recipe: dict[str, Any], run: Path) -> dict[str, Any]:
    """A recipe as a mapping, its rewards that learned marked with the run: rewards of one name that learned in two runs
    are two measures."""
    ended = read_ended(run)
    if ended is None or not recipe.get("rewards"):
        return recipe
    marked = {
        name: {**(spec or {}), "learned in": str(run)} if name in ended.learned else spec
        for name, spec in recipe["rewards"].items()
    }
    return {**recipe, "rewards": marked}


def restore_states(rewards: Iterable[Any], recipe: Recipe, run: Path) -> None:
    """Put back what the other rewards had learned by the end of the run, those inside compositions too.

    Says of which nothing is known.

    Args:
        rewards: those of `recipe`, built.
        recipe: from `with_saved_networks`.
        run: the run's folder; nothing is done for a recipe's file.
    """
    if not run.is_dir():
        return
    ended = read_ended(run) or Ended()
    for key, reward in stateful_rewards(rewards).items():
        file = run / RUN_REWARDS / f"{key}.pt"
        if key in ended.models and recipe.rewards.get(key, {}).get("model") == str(run / RUN_REWARDS / key):
            continue
        if key in ended.keys and key not in ended.models and file.is_file():
            reward.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        else:
            print(f"{key}: what it learned in {run} is not known here; it is asked as the recipe starts with it")
