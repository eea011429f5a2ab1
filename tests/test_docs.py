"""The Python of the README and of every page of the documentation runs as printed, top to bottom, offline.

A block after the line `<!-- no-run -->` is only compiled: it needs data, weights or minutes that a test does not have.
A table after `<!-- measured: NAME, within 0.1 -->` has the figures of the page's variable NAME, rows by key.
"""

import dataclasses
import importlib
import os
import re
from pathlib import Path

import pytest
import yaml

from alignkit import load_recipe
from alignkit.errors import RecipeError
from alignkit.testing import check_reward

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python[^\n]*\n(.*?)^```\s*$", flags=re.S | re.M)
MEASURED = re.compile(r"<!-- measured: (\w+), within ([\d.]+) -->\s*\n((?:\|.*\n)+)")
SETTINGS = re.compile(r"<!-- settings: ([\w.]+):(\w+) -->\s*\n((?:\|.*\n)+)")


def blocks(text: str) -> list[tuple[int, str, bool]]:
    """(line in the page, code, whether it runs) of each python block."""
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip().splitlines()
        runs = not (before and before[-1].strip() == "<!-- no-run -->")
        found.append((text[: match.start(1)].count("\n"), match.group(1), runs))
    return found


WITH_CODE = [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))]


def cells(row: str) -> list[str]:
    return [cell.strip().strip("*`") for cell in row.strip().strip("|").split("|")]


def check_figures(text: str, namespace: dict) -> None:
    """Every table that says so has the figures that the page's own code just measured."""
    for name, tolerance, table in MEASURED.findall(text):
        header, _, *rows = table.splitlines()
        printed = {row[0]: dict(zip(cells(header)[1:], map(float, row[1:]), strict=True)) for row in map(cells, rows)}
        assert set(printed) == set(namespace[name]), f"the table of {name} has other rows"
        for row, figures in printed.items():
            assert figures == pytest.approx(namespace[name][row], abs=float(tolerance)), f"{name}, {row}"


def run_page(page: Path) -> int:
    """Runs the page's blocks in one namespace; tracebacks show the page's own lines. Returns how many ran."""
    namespace = {"__name__": "__main__"}
    ran = 0
    text = page.read_text(encoding="utf-8")
    for line, code, runs in blocks(text):
        compiled = compile("\n" * line + code, str(page), "exec")
        if runs:
            exec(compiled, namespace)
            ran += 1
    check_figures(text, namespace)
    return ran


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    run_page(page)


def test_a_page_that_is_wrong_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page(page)
    page.write_text("<!-- no-run -->\n```python\nso this is no python\n```\n")
    with pytest.raises(SyntaxError):
        run_page(page)
    page.write_text("<!-- no-run -->\n```python\nraise RuntimeError\n```\n```python\ny = 3\n```\n")
    assert run_page(page) == 1
    table = "<!-- measured: seen, within 0.1 -->\n| system | share |\n| --- | --- |\n| one | 0.5 |\n\n"
    page.write_text(table + "```python\nseen = {'one': {'share': 0.55}}\n```\n")
    assert run_page(page) == 1
    for wrong in ("{'one': {'share': 0.65}}", "{'one': {'share': 0.5}, 'two': {'share': 0.5}}"):
        page.write_text(table + f"```python\nseen = {wrong}\n```\n")
        with pytest.raises(AssertionError):
            run_page(page)


YAML = re.compile(r"^```yaml[^\n]*\n(.*?)^```\s*$", flags=re.S | re.M)
RECIPE_KEYS = {"trainer", "model", "data", "rewards", "training", "evaluation", "adapter", "quantization"}
AROUND = {"trainer": "ppo", "model": "gpt2", "data": {"use": "quickstart"}, "rewards": {"length": {"target": 9}}}
RECIPES = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in [*PAGES, ROOT / "rewards" / "README.md"]
    for number, block in enumerate(YAML.findall(page.read_text(encoding="utf-8")))
    if RECIPE_KEYS & set(yaml.safe_load(block))
]


def recipe_problems(block: str, folder: Path) -> list[str]:
    """What the recipe reader says of a recipe, or of a part of one put into a plain recipe."""
    part = yaml.safe_load(block)
    learns_from_examples = part.get("trainer") in {"sft", "classifier"}
    around = {key: value for key, value in AROUND.items() if key != "rewards" or not learns_from_examples}
    file = folder / "recipe.yaml"
    missing = {key: value for key, value in around.items() if key not in part}
    if "extends" in part:
        (folder / part["extends"]).write_text(yaml.safe_dump(AROUND))
        missing = {}
    file.write_text((yaml.safe_dump(missing) if missing else "") + block)
    try:
        load_recipe(file, [])
    except RecipeError as error:
        return error.problems
    return []


@pytest.mark.parametrize("block", RECIPES)
def test_the_recipes_of_a_page_are_understood(block, tmp_path, monkeypatch):
    """All but the files that they name, which are the reader's own."""
    monkeypatch.chdir(tmp_path)
    assert [problem for problem in recipe_problems(block, tmp_path) if "there is no file" not in problem] == []


def test_a_recipe_that_is_wrong_is_noticed(tmp_path):
    assert "kl_coeff" in recipe_problems("training: {kl_coeff: 1}\n", tmp_path)[0]


def settings_tables() -> list[tuple[Path, type, dict[str, str]]]:
    """Tables after `<!-- settings: module:Config -->`: first column the setting, second its default, in backticks."""
    tables = []
    for page in PAGES:
        for module, name, table in SETTINGS.findall(page.read_text(encoding="utf-8")):
            rows = [
                [cell.strip().strip("`") for cell in row.strip().strip("|").split("|")] for row in table.splitlines()
            ]
            config = getattr(importlib.import_module(module), name)
            tables.append((page, config, {row[0]: row[1] for row in rows[2:]}))
    return tables


def default_of(field: dataclasses.Field) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return repr(value)


def test_settings_tables_give_the_defaults_of_the_code():
    tables = settings_tables()
    assert {config.__name__ for _, config, _ in tables} >= {"OnPolicyConfig", "PPOConfig", "ReinforceConfig"}
    wrong = []
    for page, config, rows in tables:
        fields = {field.name: field for field in dataclasses.fields(config)}
        for name, printed in rows.items():
            if name not in fields:
                wrong.append(f"{page.name}: {config.__name__} has no setting {name}")
            elif printed != default_of(fields[name]):
                wrong.append(f"{page.name}: {name} is {default_of(fields[name])}, the table says {printed}")
    assert wrong == []


def test_every_setting_of_ours_is_in_a_table():
    """A setting that the class itself declares, beyond what it inherits, is documented."""
    missing = []
    for page, config, rows in settings_tables():
        missing += [f"{page.name}: {name}" for name in vars(config).get("__annotations__", {}) if name not in rows]
    assert missing == []


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "concepts.md"], ids=lambda page: page.name)
def test_the_rewards_that_the_first_pages_show_keep_the_contract(page):
    namespace: dict = {}
    code = next(code for _, code, _ in blocks(page.read_text(encoding="utf-8")) if "class Politeness" in code)
    exec(code, namespace)
    check_reward(namespace["Politeness"](), skip={"check_can_be_pickled": "a class of a page cannot be"})
