"""Files stay small, are named for what they hold, and know nothing of the machine that they were written on."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 350
CODE = ("alignkit", "rewards", "scripts", "benchmarks", "recipes", "tests")
VAGUE = {"base.py", "common", "common.py", "helpers.py", "manager.py", "misc.py", "utils", "utils.py"}
TEXT = {".cfg", ".css", ".html", ".ini", ".j2", ".json", ".jsonl", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
NOT_OURS = {".bench", ".compat", ".git", ".venv", "build", "dist", "runs", "site"}
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|tmp|farm|home/\w+|mnt)(?=/)")


def code_files() -> list[Path]:
    return [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]


def text_files() -> list[Path]:
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not NOT_OURS & set(parts) and (path.suffix in TEXT or path.name in {"Makefile", "run"}):
            found.append(path)
    return found


def test_no_file_of_code_is_longer_than_350_lines():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in code_files()}
    assert lengths, "no code found: the folders have moved"
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def test_names_say_what_a_file_holds():
    vague = [p for p in code_files() if VAGUE & set(p.relative_to(ROOT).parts)]
    assert not vague, f"say what these hold: {vague}"


def test_no_file_names_a_path_of_one_machine():
    found = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


MERGE = ("<" * 7 + " ", "=" * 7 + "\n", ">" * 7 + " ")


def test_no_merge_was_left_half_done():
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1)
        if line.startswith(MERGE)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "left"), [(">" * 7 + " branch\n", True), ("=" * 7 + "\n", True), ("=" * 9 + "\n", False)]
)
def test_a_merge_that_was_left_would_be_found(line, left):
    assert line.startswith(MERGE) == left


@pytest.mark.parametrize("line", ["see /wo" + "rk/x", "open('/ro" + "ot/a')", "/ho" + "me/ann/models"])
def test_a_machine_path_would_be_found(line):
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize("line", ["docs/wo" + "rk/x", "a/tm" + "p/b", "https://example.org/ro" + "ot/"])
def test_a_relative_path_is_none(line):
    assert not MACHINE_PATH.search(line)
