"""Every public name is there, sorted, and explained."""

import ast
import importlib
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_that_lists_its_names_lists_them_sorted_and_has_them(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    listed = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "__all__"
        and isinstance(node.value, ast.List)
    ]
    if not listed:
        return
    names = ast.literal_eval(listed[0])
    base = ROOT if path.is_relative_to(ROOT / "alignkit") else ROOT / "rewards"
    parts = path.relative_to(base).with_suffix("").parts
    module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(module, name)] == []
