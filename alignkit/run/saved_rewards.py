"""The rewards of a finished run as they ended: networks that it saved, and states of the others that learn."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from alignkit.models.locating import RUN_REWARDS
from alignkit.recipe import Recipe
from alignkit.reward import stateful_rewards

# What describes a network before it has learned; the saved one knows all of it.
_OF_A_NEW_NETWORK = ("scratch", "tokenizer")


def with_saved_networks(recipe: Recipe, run: Path) -> Recipe:
    """The recipe whose rewards start from the networks that the run saved under their names in `rewards/`.

    A copy where there are any. A network inside a composition has no name in the recipe: `restore_states` has it.
    """
    kept = run / RUN_REWARDS
    # a state beside it: the network is inside a composition, which may have the same name in the recipe
    saved = [
        name
        for name in recipe.rewards
        if (kept / name / "config.json").is_file() and not (kept / f"{name}.pt").is_file()
    ]
    if not saved:
        return recipe
    changed = copy.deepcopy(recipe)
    for name in saved:
        spec = {key: value for key, value in recipe.rewards[name].items() if key not in _OF_A_NEW_NETWORK}
        changed.rewards[name] = {**spec, "model": str(kept / name)}
    return changed


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
    for key, reward in stateful_rewards(rewards).items():
        file = run / RUN_REWARDS / f"{key}.pt"
        if file.is_file():
            reward.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        elif recipe.rewards.get(key, {}).get("model") != str(run / RUN_REWARDS / key):
            print(f"{key}: what it learned in {run} is not known here; it is asked as the recipe starts with it")
