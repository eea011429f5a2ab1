"""Every public name is there, sorted, and explained."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import alignkit

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for package in (ROOT / "alignkit", ROOT / "rewards" / "alignkit_rewards")
    for path in sorted(package.rglob("*.py"))
]


def test_all_is_sorted_and_without_repeats():
    assert alignkit.__all__ == sorted(set(alignkit.__all__))


@pytest.mark.parametrize("name", alignkit.__all__)
def test_every_public_name_resolves_and_is_explained(name):
    thing = getattr(alignkit, name)
    assert (thing.__doc__ or "").strip(), f"alignkit.{name} has no docstring"
    assert thing.__module__.split(".")[0] == "alignkit"


def test_dir_offers_every_public_name():
    assert set(alignkit.__all__) <= set(dir(alignkit))


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match="PPOTrainer"):
        alignkit.__getattr__("PPOTrainr")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_and_classes_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [] if ast.get_docstring(tree) else ["the module"]
    definitions = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    silent += [n.name for n in definitions if not n.name.startswith("_") and not ast.get_docstring(n)]
    assert not silent, f"without a docstring: {', '.join(silent)}"


LISTING = [path for path in SOURCES if re.search(r"^__all__ = ", path.read_text(encoding="utf-8"), flags=re.M)]


@pytest.mark.parametrize("path", LISTING, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_every_name_that_it_lists(path):
    """That the list is sorted, ruff sees to."""
    base = ROOT if path.is_relative_to(ROOT / "alignkit") else ROOT / "rewards"
    parts = path.relative_to(base).with_suffix("").parts
    module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert len(module.__all__) == len(set(module.__all__))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
