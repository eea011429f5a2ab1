"""Whether a value fits a dataclass field's annotation, in words."""

import enum
import types
import typing
from typing import Any

from alignkit.recipe.reading import describe

_PLAIN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def misfit(value: Any, annotation: Any) -> str | None:
    """None where `value` fits, else what was expected and what was given.

    Annotations beyond the plain ones (a class of the host library, `Any`) accept everything: the class itself checks.

    >>> misfit("fast", float | None)
    "expected a number or null, got the text 'fast'"
    >>> misfit(3, float), misfit(True, int)
    (None, 'expected a whole number, got true')
    """
    options = _options(annotation)
    if any(_fits(value, option) for option in options):
        return None
    words = list(dict.fromkeys(_words(option) for option in options if option is not type(None)))
    if type(None) in options:
        words.append("null")
    return f"expected {' or '.join(words)}, got {describe(value)}"


def _options(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for option in typing.get_args(annotation) for inner in _options(option)]
    return [type(None) if annotation is None else annotation]


def _fits(value: Any, annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if origin is bool:
        return isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin in (list, tuple):
        (inner, *_) = typing.get_args(annotation) or (Any,)
        return isinstance(value, list) and all(any(_fits(v, o) for o in _options(inner)) for v in value)
    if origin in (str, dict, type(None)):
        return isinstance(value, origin)
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return value in [member.value for member in origin]
    return True


def _words(annotation: Any) -> str:
    origin = typing.get_origin(annotation) or annotation
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(annotation))
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in origin)
    inner = [_PLAIN.get(part, "") for part in typing.get_args(annotation)]
    if origin is list and inner and inner[0]:
        return f"a list ({inner[0]} each)"
    return _PLAIN.get(origin, getattr(origin, "__name__", str(origin)))
