"""Settings checked against a function's signature: names, missing ones, and types as annotated."""

import difflib
import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def setting_problems(function: Callable, settings: dict[str, Any], owner: str) -> list[str]:
    """What is wrong with `settings` as arguments of `function`, one sentence each.

    Args:
        function: takes every setting by keyword and annotates its type.
        settings: what was given.
        owner: whose settings they are, for the messages.
    """
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(function)
    problems = []
    for name, value in settings.items():
        if name not in parameters:
            close = difflib.get_close_matches(name, parameters, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(parameters) or 'none'}"
            problems.append(f"{owner} has no setting {name!r}; {hint}")
        elif name in hints and not fits(value, hints[name]):
            problems.append(f"{owner}: {name} must be {spelled(hints[name])}, got {value!r}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in settings:
            problems.append(f"{owner} needs the setting {name!r}")
    return problems


def fits(value: Any, hint: Any) -> bool:
    """Whether a value, as YAML or Python gives it, is of the annotated type. A list serves as a tuple.

    >>> fits([20, 60], tuple[int, int]), fits(True, int), fits(1, float), fits("b", Literal["a"])
    (True, False, True, False)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if origin is tuple:
        return (
            isinstance(value, list | tuple)
            and len(value) == len(arguments)
            and all(fits(item, argument) for item, argument in zip(value, arguments, strict=True))
        )
    if origin is dict:
        key, item = arguments
        return isinstance(value, dict) and all(fits(k, key) and fits(v, item) for k, v in value.items())
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def spelled(hint: Any) -> str:
    """A type in words.

    >>> spelled(Literal["opening", "random"]), spelled(int | None)
    ("'opening' or 'random'", 'a whole number or none')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(spelled(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin is list:
        return f"a list of {spelled(arguments[0]).removeprefix('a ')}s"
    if origin is tuple:
        return f"{len(arguments)} values, each {spelled(arguments[0])}"
    if origin is dict:
        return f"a mapping from {spelled(arguments[0])} to {spelled(arguments[1])}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))
