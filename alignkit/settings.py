"""Settings held against what takes them: names, missing ones, and values against their annotations, in words.

Recipes, data sets and new models are checked by these few functions, so a mistake reads alike wherever it is made.
"""

import difflib
import enum
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

_PLAIN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def setting_problems(
    owner: str,
    given: Mapping[str, Any],
    known: Mapping[str, Any],
    needed: Iterable[str] = (),
    *,
    where: str = "",
    also: Iterable[str] = (),
    moved: Mapping[str, str] = MappingProxyType({}),
    noun: str = "setting",
) -> list[str]:
    """What is wrong with settings, one sentence each.

    Args:
        owner: whose settings they are, for the messages.
        given: the settings.
        known: name -> annotation of every setting that there is; `Any` accepts every value.
        needed: names that must be given.
        where: the section of a recipe that they stand in, for the messages.
        also: names that the section takes besides, for suggestions.
        moved: names that another program has for some of them -> the end of the sentence that there is none such here.
        noun: what the messages call them; `argument` where they are a constructor's.

    >>> setting_problems("the house", {"sise": 2, "rooms": "two"}, {"size": int, "rooms": int}, ["size"])
    ... # doctest: +NORMALIZE_WHITESPACE
    ["the house has no setting 'sise'; did you mean 'size'?",
     "the house: rooms: expected a whole number, got the text 'two'", "the house needs the setting 'size'"]
    """
    begin, path = (f"{where}: ", f"{where}.") if where else ("", f"{owner}: ")
    problems = []
    for name, value in given.items():
        if name not in known:
            hint = moved.get(name) or did_you_mean(name, [*known, *also]) or ("" if known else "; it has none")
            problems.append(f"{begin}{owner} has no {noun} {name!r}{hint}")
        elif (wrong := misfit(value, known[name])) is not None:
            problems.append(f"{path}{name}: {wrong}")
    return problems + [f"{begin}{owner} needs the {noun} {name!r}" for name in needed if name not in given]


def argument_problems(
    owner: str,
    given: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    *,
    hints: Mapping[str, Any] | None = None,
    demand: bool = True,
    where: str = "",
    also: Iterable[str] = (),
    moved: Mapping[str, str] = MappingProxyType({}),
    noun: str = "setting",
) -> list[str]:
    """What is wrong with settings as keyword arguments, one sentence each; see `setting_problems`.

    Args:
        owner: whose settings they are, for the messages.
        given: the settings.
        parameters: of the signature. One that takes any keyword knows all names.
        hints: annotations, where values are to be checked too.
        demand: whether to ask for parameters without a default.
        where: the section of a recipe.
        also: names that the section takes besides.
        moved: as in `setting_problems`.
        noun: as in `setting_problems`.
    """
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given = {name: value for name, value in given.items() if name in named}
    known = {name: (hints or {}).get(name, Any) for name in named}
    needed = [name for name, p in named.items() if demand and p.default is p.empty]
    return setting_problems(owner, given, known, needed, where=where, also=also, moved=moved, noun=noun)


def hints_of(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """What the parameters of a signature say of their values: annotations that are no text; None, too, where it is the
    default.

    >>> def build(size: int = None, name: "str" = "", *, rate: float | str = 1): ...
    >>> hints_of(inspect.signature(build).parameters)
    {'size': typing.Optional[int], 'rate': float | str}
    """
    said = {n: p for n, p in parameters.items() if p.annotation is not p.empty and not isinstance(p.annotation, str)}
    # an annotation may be any object, for most of which `| None` is an error
    return {n: typing.Optional[p.annotation] if p.default is None else p.annotation for n, p in said.items()}  # noqa: UP045


def did_you_mean(word: Any, known: Iterable[str], listing: int = 12) -> str:
    """The end of an "unknown name" message: the nearest known name, or the names where there are few.

    >>> did_you_mean("learning_rat", ["learning_rate", "max_steps"])
    "; did you mean 'learning_rate'?"
    >>> did_you_mean("zzz", ["ppo", "sft"])
    '; known: ppo, sft'
    """
    options = sorted(set(known))
    near = nearest(word, options)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; known: {', '.join(options)}" if 0 < len(options) <= listing else ""


def nearest(word: Any, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one is most like, None where none is like it.

    >>> nearest("questions", ["question", "answer"]), nearest("zzz", ["question"])
    ('question', None)
    """
    found = difflib.get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def suggestion(word: Any, known: Iterable[str]) -> str:
    """A sentence that names what a misspelt name may have meant; empty where nothing is like it.

    >>> suggestion("questions", ["question", "answer"]), suggestion("zzz", ["question"])
    (" Did you mean 'question'?", '')
    """
    near = nearest(word, known)
    return "" if near is None else f" Did you mean '{near}'?"


def describe(value: Any) -> str:
    """A value for an error message: what it is and, where short, what it says.

    >>> describe([1, 2]), describe("x"), describe(None)
    ('a list', "the text 'x'", 'nothing')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else type(value).__name__


def misfit(value: Any, annotation: Any) -> str | None:
    """None where `value`, as YAML or Python gives it, fits the annotation; else what was expected and what was given.

    A list serves as a tuple. Annotations beyond the plain ones (a class of the host library, `Any`) accept everything:
    the class itself checks.

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
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin is bool:
        return isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is tuple and inner and Ellipsis not in inner:
        fixed = isinstance(value, list | tuple) and len(value) == len(inner)
        return fixed and all(_any_fits(item, kind) for item, kind in zip(value, inner, strict=True))
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_any_fits(item, inner[0]) for item in value if inner)
    if origin is dict and inner:
        key, item = inner
        return isinstance(value, dict) and all(_any_fits(k, key) and _any_fits(v, item) for k, v in value.items())
    if origin in (str, dict, type(None)):
        return isinstance(value, origin)
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return value in [member.value for member in origin]
    return True


def _any_fits(value: Any, annotation: Any) -> bool:
    return any(_fits(value, option) for option in _options(annotation))


def _words(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in origin)
    inner = [_PLAIN.get(part, "") for part in arguments]
    if origin is list and inner and inner[0]:
        return f"a list ({inner[0]} each)"
    if origin is tuple and inner and all(inner):
        return f"a list of {len(inner)} ({', '.join(inner)})"
    if origin is dict and all(inner) and inner:
        return f"a mapping from {inner[0]} to {inner[1]}"
    return _PLAIN.get(origin, getattr(origin, "__name__", str(origin)))
