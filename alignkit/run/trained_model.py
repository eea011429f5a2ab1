"""What the run that trained a model tells of it: how it formed dialogues, and how long completions are."""

import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from alignkit.data.dialogue import Context, context_of
from alignkit.decoding.prompts import check_room, room_behind
from alignkit.models.locating import RUN_MODEL, RUN_RECIPE, is_run, resolve_model
from alignkit.recipe.evaluation_checks import COMPLETION_DEFAULTS
from alignkit.recipe.kinds import TRAINERS
from alignkit.recipe.reading import read_recipe

# a model of which nothing is known
USUAL_LENGTH = 64


def recipe_of_run(model: str) -> dict[str, Any]:
    """The recipe, as it is written, of the run that trained a model; empty for a model of no run.

    Args:
        model: a run's folder, its model's, one of its checkpoints', or another folder or name.
    """
    folder = Path(resolve_model(model))
    if not folder.is_dir():  # a name on the hub
        return {}
    places = [folder]
    if folder.name == RUN_MODEL or re.fullmatch(r"checkpoint-\d+", folder.name):
        places.append(folder.parent)
    run = next((place for place in places if is_run(place)), None)
    return read_recipe(run / RUN_RECIPE) if run is not None else {}


def context_of_run(model: str) -> Context | None:
    """How the run that trained a model formed its dialogues; None for other data, or a model of no run."""
    data = recipe_of_run(model).get("data")
    return context_of(**{key: value for key, value in data.items() if key != "ptx"}) if data else None


def longest_completion(recipe: Mapping[str, Any]) -> int:
    """In tokens: what a run of this recipe completes its held-out prompts with, at most; 64 without a recipe.

    >>> longest_completion({"trainer": "ppo", "training": {"max_completion_length": 32}})
    32
    >>> longest_completion({"trainer": "sft"}), longest_completion({})
    (48, 64)
    """
    kind = TRAINERS.get(recipe.get("trainer", ""))
    if kind is None or kind.family == "classifier":
        return USUAL_LENGTH
    section, key = "evaluation", "max_new_tokens"
    usual: Any = COMPLETION_DEFAULTS[key]
    if kind.family == "on_policy":
        section, key = "training", "max_completion_length"
        usual = next(field.default for field in fields(kind.config_class()) if field.name == key)
    given = recipe.get(section)
    told = given.get(key) if isinstance(given, Mapping) else None
    return int(usual if told is None else told)


def completion_length(model: str, network: PreTrainedModel, prompt_tokens: int, asked: int | None = None) -> int:
    """How many tokens to complete a prompt with: as many as asked for, or as the model's run did and there is room for.

    Args:
        model: its folder or name.
        network: the model itself.
        prompt_tokens: of the longest prompt.
        asked: what the user said; None for what the run did. What is cut from that is told on standard error.

    Raises:
        ConfigError: there is no room for what was asked, or for any token.
    """
    begun = 1 if network.config.is_encoder_decoder else prompt_tokens
    wanted = longest_completion(recipe_of_run(model)) if asked is None else asked
    room = room_behind(network, begun)
    if asked is not None or room is None or room < 1:
        check_room(network, begun, wanted)
        return wanted
    if room < wanted:
        longest = "" if network.config.is_encoder_decoder else f" behind the longest prompt, of {prompt_tokens} tokens"
        print(
            f"completions have at most {room} tokens, not {wanted}: the model has room for no more{longest}; "
            "--max-new-tokens sets another number",
            file=sys.stderr,
        )
    return min(wanted, room)
