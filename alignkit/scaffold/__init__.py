"""A plugin package for one's own reward: everything that a distribution needs, with tests that pass."""

import keyword
import re
from pathlib import Path
from string import Template

from alignkit.errors import RewardCollisionError, RewardError
from alignkit.registry import available_rewards

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[_-][a-z0-9]+)*")

# Where each template goes; `$` names are filled in here too.
FILES = {
    "pyproject.toml.tmpl": "pyproject.toml",
    "README.md.tmpl": "README.md",
    "reward.py.tmpl": "$package/__init__.py",
    "test_reward.py.tmpl": "tests/test_$name.py",
    "samples.jsonl.tmpl": "samples.jsonl",
}


def new_plugin(name: str, folder: str | Path | None = None) -> list[Path]:
    """Writes a plugin package for a reward called `name`.

    Args:
        name: lower-case words joined by `_` or `-`, such as "politeness"; the name that load_reward will take.
        folder: where to; by default `alignkit-<name>` in the current folder. It must be new or empty.

    Returns:
        The files that were written.

    Raises:
        RewardError: the name or the folder will not do.
        RewardCollisionError: an installed reward has that name.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise RewardError(
            f"a reward cannot be called {name!r}: use lower-case letters and digits, words joined by '_', such as "
            "'politeness' or 'short_answers'"
        )
    name = name.replace("-", "_")
    for entry in available_rewards():
        if entry.name == name:
            raise RewardCollisionError(
                f"{entry.distribution} {entry.version} has a reward '{name}' already; choose another name"
            )
    folder = Path(folder) if folder is not None else Path(f"alignkit-{name.replace('_', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RewardError(f"{folder} exists and is not an empty folder; name another one with --folder")
    words = {
        "name": name,
        "title": "".join(word.capitalize() for word in name.split("_")),
        "package": f"alignkit_{name}",
        "distribution": f"alignkit-{name.replace('_', '-')}",
        "folder": folder.name,
    }
    written = []
    for template, target in FILES.items():
        path = folder / Template(target).substitute(words)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(words)
        path.write_text(content, encoding="utf-8")
        written.append(path)
    return written
