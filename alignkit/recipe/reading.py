"""YAML and overrides to plain values, strictly: what YAML would quietly change or drop is an error here.

Three habits of YAML 1.1 (and of PyYAML) bite in recipes and are switched off: `1e-5` is a number and not a string,
`no` and `on` are words and not booleans, and a key that stands twice is refused.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import RecipeError
from alignkit.settings import describe, did_you_mean


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2's core schema; no key twice."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's name and type)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_SCALARS = {
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "int": (r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
    "float": (
        r"^[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9_]+|[0-9][0-9_]*\.?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|nan)$",
        "-+.0123456789",
    ),
}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader` would read as something else."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


for _name, (_pattern, _first) in _SCALARS.items():
    for _reader_or_writer in (_Loader, _Dumper):
        _reader_or_writer.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), list(_first))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    >>> parse_yaml("{learning_rate: 1e-5, save_strategy: no, steps: 1_000}")
    {'learning_rate': 1e-05, 'save_strategy': 'no', 'steps': 1000}
    """
    return yaml.load(text, Loader=_Loader)


def dump_yaml(value: Any) -> str:
    """The value as YAML that `parse_yaml` reads back, keys in their order.

    >>> print(dump_yaml({"steps": 2, "word": "1e-5"}).strip())
    steps: 2
    word: '1e-5'
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The mapping in a recipe file.

    Raises:
        RecipeError: no such file, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = did_you_mean(path.name, [other.name for other in path.parent.glob("*.yaml")])
        raise RecipeError([f"there is no file {str(path)!r}{hint}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"the file cannot be read: {error}"], str(path)) from error
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError([f"not valid YAML: {where}{getattr(error, 'problem', None) or error}"], str(path)) from error
    if not isinstance(content, dict):
        raise RecipeError([f"a recipe is a mapping of keys, this file holds {describe(content)}"], str(path))
    return content


def apply_overrides(content: dict[str, Any], overrides: Iterable[str]) -> list[str]:
    """Sets `dotted.key=value` in `content`, values read as YAML. Returns what went wrong, a sentence each."""
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            problems.append(f"override {override!r}: expected key=value, for example training.max_steps=10")
            continue
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            problems.append(f"override {override!r}: the value is not valid YAML ({getattr(error, 'problem', error)})")
            continue
        target: Any = content
        for i, part in enumerate(path[:-1]):
            inner = target.get(part)
            if inner is None:
                inner = target[part] = {}
            if not isinstance(inner, dict):
                problems.append(f"override {override!r}: {'.'.join(path[: i + 1])} holds {describe(inner)}, not keys")
                break
            target = inner
        else:
            target[path[-1]] = value
    return problems
