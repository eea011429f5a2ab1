"""A recipe that states only its differences from another recipe."""

from pathlib import Path
from typing import Any

from alignkit.errors import RecipeError
from alignkit.recipe.reading import read_recipe
from alignkit.settings import describe

EXTENDS = "extends"
DECODER = ("evaluation", "decoder")


def read_extended(path: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """The mapping in a recipe file, and before it that of the file that its key `extends` names, and so on.

    Args:
        path: the recipe; `extends` is relative to its folder.

    Returns:
        files and their mappings, without `extends`; the one that all the others stand on comes first.

    Raises:
        RecipeError: as `read_recipe`, for each of the files; `extends` that is no path, or leads back to a file.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    following = Path(path)
    while True:
        try:
            content = read_recipe(following)
        except RecipeError as error:
            if not found:
                raise
            named_by = found[0][0]
            raise RecipeError([f"extends: {problem}" for problem in error.problems], str(named_by)) from error
        name = content.pop(EXTENDS, None)
        found.insert(0, (following, content))
        if name is None:
            return found
        if not isinstance(name, str) or not name:
            problem = f"extends: expected the path of another recipe, such as base.yaml; got {describe(name)}"
            raise RecipeError([problem], str(following))
        following = following.parent / name
        if following.resolve() in [file.resolve() for file, _ in found]:
            chain = " -> ".join([*(file.name for file, _ in reversed(found)), following.name])
            problem = f"extends: comes back to a file that is read already: {chain}"
            raise RecipeError([problem], str(found[0][0]))


def merged(base: dict[str, Any], own: dict[str, Any], place: tuple[str, ...] = ()) -> dict[str, Any]:
    """`base` with the differences that `own` states: mappings key by key, anything else as a whole; None removes what
    `base` says. A model, data, reward, metric or decoder that is another one takes none of the settings over.

    >>> merged({"data": {"use": "imdb", "seed": 1}, "training": {"seed": 1}}, {"data": {"use": "sst2"}, "training": {}})
    {'data': {'use': 'sst2'}, 'training': {'seed': 1}}
    >>> merged({"training": {"seed": 1, "max_steps": 2}}, {"training": {"seed": None}})
    {'training': {'max_steps': 2}}
    """
    result = dict(base)
    for key, value in own.items():
        below, here = base.get(key), (*place, key)
        if value is None and key in base:
            del result[key]
        elif isinstance(value, dict) and isinstance(below, dict) and not _is_another(below, value, here):
            result[key] = merged(below, value, here)
        else:
            result[key] = value
    return result


def _is_another(below: dict[str, Any], value: dict[str, Any], place: tuple[str, ...]) -> bool:
    """Whether `value` describes something else than `below`, not the same with other settings."""
    if place[0] in ("model", "data"):
        if value.get("scratch") is not None:
            return "scratch" not in below
        return any(value.get(key) not in (None, below.get(key)) for key in ("use", "name"))
    if place[:-1] in (("rewards",), ("evaluation", "metrics")):
        use = below.get("use", place[-1])
        return value.get("use", use) != use or value.get("reward", below.get("reward")) != below.get("reward")
    if place in (DECODER, (*DECODER, "reward")):
        return value.get("use") not in (None, below.get("use"))
    return False
