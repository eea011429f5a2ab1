"""A recipe that says only what it does otherwise than another one."""

from pathlib import Path
from typing import Any

from alignkit.errors import RecipeError
from alignkit.recipe.reading import read_recipe
from alignkit.settings import describe

EXTENDS = "extends"
# What a mapping with one of these describes: another one has settings of its own.
_IDENTITY = ("use", "name", "scratch")


def read_extended(path: str | Path) -> list[dict[str, Any]]:
    """The mapping in a recipe file, and before it that of the file that its key `extends` names, and so on.

    Args:
        path: the recipe; `extends` is relative to its folder.

    Returns:
        mappings without `extends`, the one that all the others stand on first.

    Raises:
        RecipeError: as `read_recipe`, for each of the files; `extends` that is no path, or leads back to a file.
    """
    found: list[dict[str, Any]] = []
    files: list[Path] = []
    following: Path | None = Path(path)
    while following is not None:
        file, following = following, None
        content = read_recipe(file)
        files.append(file.resolve())
        name = content.pop(EXTENDS, None)
        found.insert(0, content)
        if name is not None and not isinstance(name, str):
            problem = f"extends: expected the path of another recipe, such as base.yaml; got {describe(name)}"
            raise RecipeError([problem], str(file))
        if name is not None:
            following = file.parent / name
            if following.resolve() in files:
                chain = " -> ".join(one.name for one in (*files, following))
                raise RecipeError([f"extends: comes back to a file that is read already: {chain}"], str(file))
    return found


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `own` says otherwise: mappings key by key, anything else as a whole. A mapping that describes
    another thing (by another `use`, another `name`, or `scratch`) takes nothing over.

    >>> merged({"data": {"use": "imdb", "seed": 1}, "training": {"seed": 1}}, {"data": {"use": "sst2"}, "training": {}})
    {'data': {'use': 'sst2'}, 'training': {'seed': 1}}
    """
    result = dict(base)
    for key, value in own.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and not _is_another(below, value):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


def _is_another(below: dict[str, Any], value: dict[str, Any]) -> bool:
    """Whether `value` describes something else than `below`, not the same with other settings."""
    told = [key for key in _IDENTITY if key in value]
    if "scratch" in told:
        return "scratch" not in below
    return any(value[key] != below.get(key) for key in told)
