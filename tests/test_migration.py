"""The page for those who come from TRL 1.12's PPOTrainer names what there is.

That it leaves out nothing of theirs, `make compat` checks, where their TRL is installed.
"""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from alignkit import PPOConfig, PPOTrainer

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "migrate-from-trl-ppo.md").read_text(encoding="utf-8")
METRICS = (DOCS / "metrics.md").read_text(encoding="utf-8")
GONE = "-"


def table(heading):
    """Rows of the first table under a heading, as lists of cells, without their head."""
    body = re.split(r"\n## ", PAGE.split(f"\n## {heading}\n")[1])[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", body, re.M)[2:]]


def named(cell):
    return re.findall(r"`([^`]+)`", cell)


def settings_here():
    return {name for row in table("Settings") for name in named(row[1])}


def unknown_settings(names):
    return sorted(set(names) - {field.name for field in dataclasses.fields(PPOConfig)})


def test_every_setting_that_it_names_exists():
    assert len(settings_here()) > 20
    assert unknown_settings(settings_here()) == []
    counted = {
        name for row in table("Batches and steps") for part in named(row[1]) for name in re.findall(r"\w+", part)
    }
    assert counted and unknown_settings(counted) == []
    assert unknown_settings({"kl_coef", "num_ppo_epochs"}) == ["num_ppo_epochs"]


def test_every_argument_that_it_names_exists():
    ours = {name for cls in PPOTrainer.__mro__ for name in inspect.signature(cls.__init__).parameters}
    rows = table("Arguments")
    assert len(rows) == 12
    assert sorted({name for row in rows for name in named(row[1])} - ours) == []


def test_every_figure_that_it_names_is_one_of_ours():
    listed = METRICS.split("<!-- metrics table -->\n")[1].split("\n\n")[0]
    keys = {name for line in listed.splitlines() for name in named(line.split("|")[1])}
    rows = table("Logged figures")
    assert len(rows) == 17
    assert sorted({name for row in rows for name in named(row[1])} - keys) == []


@pytest.mark.parametrize("heading", ["Settings", "Arguments", "Logged figures"])
def test_every_row_says_where_it_went_or_that_it_is_gone(heading):
    for theirs, ours, change in table(heading):
        assert theirs and change
        assert named(ours) or ours == GONE, theirs
        if ours == GONE and heading != "Logged figures":
            assert change.startswith("gone"), theirs
        if change == "same" and heading != "Logged figures":
            assert theirs == ours
