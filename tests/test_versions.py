"""The versions that pyproject.toml allows are the ones that the two constraint files try."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What only formats, checks or prints the sources has no part in a run with the lowest versions.
TOOLS = {"mypy", "ruff", "types-PyYAML"}
NEEDED = [
    Requirement(line)
    for lines in (
        PROJECT["dependencies"],
        PROJECT["optional-dependencies"]["quantization"],
        PROJECT["optional-dependencies"]["rate"],
        PROJECT["optional-dependencies"]["dev"],
    )
    for line in lines
    if Requirement(line).name not in TOOLS
]


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines if line and not line.startswith("#")]
    assert all(found), f"{name}: every line is package==version"
    return {match[1].lower().replace("_", "-"): Version(match[2]) for match in found}


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda requirement: requirement.name)
def test_the_lowest_version_is_the_bound(requirement):
    lowest = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
    assert [pins("constraints-lower.txt")[requirement.name.lower()]] == lowest


def test_no_other_package_is_held_low():
    assert set(pins("constraints-lower.txt")) == {requirement.name.lower() for requirement in NEEDED}


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda requirement: requirement.name)
def test_the_version_of_the_tests_is_allowed(requirement):
    assert pins("constraints.txt")[requirement.name.lower()] in requirement.specifier


@pytest.mark.parametrize("name", sorted(pins("constraints.txt")))
def test_a_pinned_version_runs_on_the_first_python_that_is_allowed(name):
    """Debian 12 has Python 3.11.2: a pin that wants a later 3.11 breaks the README's first command there."""
    try:
        about = metadata(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")
    if Version(about["Version"]).public != str(pins("constraints.txt")[name]):
        pytest.skip(f"{name} {about['Version']} is installed here, which is not the pinned one")
    needs = about["Requires-Python"]
    first = PROJECT["requires-python"].removeprefix(">=") + ".0"
    assert needs is None or first in SpecifierSet(needs), f"{name} needs Python {needs}"


def test_this_python_is_among_those_that_are_said_to_work():
    lowest = min(
        tuple(map(int, line.rsplit(" :: ", 1)[1].split(".")))
        for line in PROJECT["classifiers"]
        if line.startswith("Programming Language :: Python :: 3.")
    )
    assert PROJECT["requires-python"] == ">=" + ".".join(map(str, lowest))
    assert sys.version_info >= lowest
