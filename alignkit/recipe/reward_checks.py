"""Mistakes in what a recipe says of rewards, found without building one."""

import inspect
from typing import Any

from alignkit.errors import AlignkitError
from alignkit.recipe.kinds import TrainerKind
from alignkit.settings import argument_problems, describe, hints_of, misfit

# A reward's entry holds its parameters and these two, which are the recipe's own.
REWARD_KEYS = ("use", "weight")


def check_rewards(rewards: dict[str, Any], kind: TrainerKind | None, allow_code: bool) -> list[str]:
    """Names that resolve, parameters that the reward has, weights that are numbers."""
    problems = []
    if kind is not None and kind.family == "on_policy" and not rewards:
        problems.append("rewards: a trainer that samples needs at least one reward")
    if kind is not None and kind.family != "on_policy" and rewards:
        problems.append("rewards: this trainer learns from examples and takes no rewards")
    for name, spec in rewards.items():
        where = f"rewards.{name}"
        if not isinstance(spec, dict):
            problems.append(f"{where}: expected a mapping of its parameters, got {describe(spec)}")
            continue
        wrong = misfit(spec.get("weight", 1.0), float)
        if wrong:
            problems.append(f"{where}.weight: {wrong}")
        target = spec.get("use", name)
        if not isinstance(target, str):
            problems.append(f"{where}.use: expected the name of a reward, got {describe(target)}")
            continue
        given = {key: value for key, value in spec.items() if key not in REWARD_KEYS}
        problems += check_reward_parameters(where, target, given, allow_code, REWARD_KEYS)
    return problems


def check_reward_parameters(
    where: str, target: str, given: dict[str, Any], allow_code: bool, own: tuple[str, ...]
) -> list[str]:
    """Whether a reward exists and takes these parameters; it is not constructed. `own` are the entry's other keys.

    A composition is checked with the rewards inside it.
    """
    from alignkit.registry import find_reward
    from alignkit.registry.resolving import SUPPLIED

    try:
        found = find_reward(target, allow_code=allow_code)
    except AlignkitError as error:
        return [f"{where}: {error}"]
    if isinstance(found, type):
        parameters = inspect.signature(found).parameters
        hints = hints_of(parameters)
        problems = argument_problems(f"reward {target!r}", given, parameters, hints=hints, where=where, also=own)
        for place, name, settings in _inner_rewards(where, found, given):
            problems += check_reward_parameters(place, name, settings, allow_code, ("use",))
        return problems
    if given and inspect.isroutine(found):
        # what a function takes besides, `**columns`, are columns of the data and no settings
        keywords = {
            name: parameter
            for name, parameter in inspect.signature(found).parameters.items()
            if name not in SUPPLIED and parameter.kind is not parameter.VAR_KEYWORD
        }
        hints = hints_of(keywords)
        return argument_problems(
            f"reward {target!r}", given, keywords, hints=hints, demand=False, where=where, also=own
        )
    if given:
        return [f"{where}: reward {target!r} is a ready object and takes no parameters, got {', '.join(given)}"]
    return []


def _inner_rewards(where: str, outer: type, given: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Place, name and settings of each reward that stands in another's settings: `{use: NAME, ...}`, wherever it is, or
    the bare name where the outer one is a composition of `alignkit.compose`, which takes names."""
    takes_names = outer.__module__ == "alignkit.compose"
    found = []
    for key, value in given.items():
        listed = isinstance(value, list)
        for i, item in enumerate(value if listed else [value]):
            place = f"{where}.{key}" + (f"[{i}]" if listed else "")
            if isinstance(item, dict) and isinstance(item.get("use"), str):
                found.append((place, item["use"], {k: v for k, v in item.items() if k != "use"}))
            elif isinstance(item, str) and takes_names and key in ("reward", "rewards"):
                found.append((place, item, {}))
    return found
