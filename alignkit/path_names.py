"""What a run's card and published results say of where files lie: the names of files, not of the folders around them.

The folders tell who wrote it and how their machine is laid out, and are of no use to a reader.
"""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

# A string that is a path from the root, from a home folder (~, ~ann) or from a Windows drive, or a file: address.
_WHOLE = re.compile(r"(?:file:/|/|~[^/\s]*/|[A-Za-z]:[\\/]|\\\\)[^\n]*", re.IGNORECASE)
# Where one path of a list ends (PATH, and lists with commas or semicolons) and the next begins.
_NEXT = re.compile(r"(?<!file)[:,;](?=/|file:/)", re.IGNORECASE)
# A path inside other text, up to its last part. The path of an address such as https://example.org/a/b is none: what
# stands before it is another character.
_INSIDE = re.compile(r"(?:\bfile:(?://[\w.-]*)?|(?<![\w.~/-]))/(?:[^\s/'\",:=]+/)+", re.IGNORECASE)
_SETTING = re.compile(r"([\w.-]+=)(.+)", re.DOTALL)


def without_folders(value: Any, instead: str = "path/to/") -> Any:
    """A value with every absolute path reduced to its last part.

    Strings that are a path, or a setting `name=path`, lose all their folders, whatever these are called. In other text,
    where nothing shows the end of a path, a folder's name counts up to the first space, quote, comma, colon or `=`.

    Args:
        value: text, or mappings and lists of it to any depth, such as a recipe or the words of a command.
        instead: what to write before the last part.

    Returns:
        a copy; what is neither text nor a path stays as it is. Names in a mapping that become equal get a number.

    >>> without_folders({"path": "/data/ann smith/mine.yaml", "card": "file:///data/ann/x.json", "steps": 2})
    {'path': 'path/to/mine.yaml', 'card': 'path/to/x.json', 'steps': 2}
    >>> without_folders(["model=/data/a,b/lm", "data={use: files, path: /data/ann smith/x}", "https://example.org/a/b"])
    ['model=path/to/lm', 'data={use: files, path: path/to/x}', 'https://example.org/a/b']
    """
    if isinstance(value, Mapping):
        shown: dict[Any, Any] = {}
        for key, part in value.items():
            name, again = without_folders(key, instead), 1
            while name in shown:  # /data/a/x.py and /data/b/x.py
                again += 1
                name = f"{without_folders(key, instead)} ({again})"
            shown[name] = without_folders(part, instead)
        return shown
    if isinstance(value, list | tuple):
        return [without_folders(part, instead) for part in value]
    if isinstance(value, PurePath):
        return _text(str(value), instead)
    return _text(value, instead) if isinstance(value, str) else value


def _text(text: str, instead: str) -> str:
    if _WHOLE.fullmatch(text):
        paths = _NEXT.split(text)
        marks = [*_NEXT.findall(text), ""]
        return "".join(_last_part(path, instead) + mark for path, mark in zip(paths, marks, strict=True))
    setting = _SETTING.fullmatch(text)
    if setting:
        return setting[1] + _setting(setting[2], instead)
    return _INSIDE.sub(lambda found: instead, text)


def _last_part(path: str, instead: str) -> str:
    parts = [part for part in re.split(r"[\\/]+", path) if part]
    if len(parts) < 2:  # /mine.yaml lies in no folder; nor is /no_think a path
        return path
    return instead + parts[-1]


def _setting(text: str, instead: str) -> str:
    """The value of a `name=value` word: YAML, of which only a mapping or list can hold several texts."""
    if text[0] not in "{[":
        return _text(text, instead)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:  # other text with an = in it
        return _INSIDE.sub(lambda found: instead, text)
    shown = without_folders(value, instead)
    if shown == value:
        return text
    return yaml.safe_dump(shown, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6).strip()
