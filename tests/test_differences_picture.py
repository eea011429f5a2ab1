"""The picture of a comparison: what is drawn where, read from matplotlib's own objects."""

import json

import pytest
from matplotlib.figure import Figure

from alignkit.cli import main
from alignkit.comparison import compare_rows
from alignkit.errors import ConfigError
from alignkit.report.differences import comparing, draw_differences, write_differences

SYSTEMS = ["first", "above", "below", "unclear", "far", "unknown"]


def standing(low, high):
    return {"mean": 0.0, "prompts": 9, "difference": (low + high) / 2, "interval": [low, high]}


STANDINGS = {
    "first": {"mean": 0.0, "prompts": 9, "difference": None, "interval": None},
    "above": standing(1.0, 3.0),
    "below": standing(-2.0, -1.0),
    "unclear": standing(-1.0, 2.0),
    "far": standing(-90.0, -70.0),
}


def drawn():
    axes = Figure().subplots()
    draw_differences(axes, STANDINGS, SYSTEMS)
    return axes


def test_each_system_has_its_line_with_its_interval_and_its_colour():
    axes = drawn()
    assert [label.get_text() for label in axes.get_yticklabels()] == SYSTEMS[1:]
    lines = {
        int(line.get_ydata()[0]): (list(line.get_xdata()), line.get_color())
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]
    }
    assert lines == {0: ([1.0, 3.0], "C0"), 1: ([-2.0, -1.0], "C3"), 2: ([-1.0, 2.0], "0.6")}
    dots = {int(line.get_ydata()[0]): line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"}
    assert dots == {0: 2.0, 1: -1.5, 2: 0.5}
    # from top to bottom
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_what_lies_far_off_is_an_arrow_that_says_how_far_and_does_not_squeeze_the_others():
    axes = drawn()
    left, right = axes.get_xlim()
    assert -4 < left < -2 and 3 < right < 5
    (arrow,) = (line for line in axes.lines if line.get_marker() == "<")
    assert (list(arrow.get_xdata()), list(arrow.get_ydata())) == ([left], [3])
    assert [text.get_text() for text in axes.texts] == ["-80"]


def rows(shift):
    scores = [0.1 * (i % 3) + shift + 0.01 * (i % 5) * shift for i in range(12)]
    return [
        {"prompt": f"p{i}", "rewards": {"warm": score}, "reward": score, "kl": None, "length": 3 + i % 2}
        for i, score in enumerate(scores)
    ]


def test_a_comparison_is_drawn_to_a_file_of_either_kind(tmp_path):
    found = compare_rows({"one": rows(0.0), "other": rows(0.5)}).to_dict()
    assert set(comparing(found)) == {"reward", "rewards/warm", "length"}
    svg = write_differences(found, tmp_path / "all.svg")
    assert "<svg" in svg.read_text()
    png = write_differences(found, tmp_path / "some.png", {"reward": "Reward"})
    assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"of 'rewardd'; did you mean 'reward'"):
        write_differences(found, tmp_path / "no.svg", {"rewardd": "Reward"})
    with pytest.raises(ConfigError, match="nothing to draw"):
        write_differences({**found, "figures": {}}, tmp_path / "no.svg")
    assert not (tmp_path / "no.svg").exists()


def test_the_command_line_draws_and_says_where(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, shift in (("one", 0.0), ("other", 0.5)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows(shift), "recipe": {}}))
    assert main(["compare", "one.json", "other.json", "--metric", "reward", "--plot", "found.svg"]) == 0
    assert "drawn to found.svg" in capsys.readouterr().out and "<svg" in (tmp_path / "found.svg").read_text()
    assert main(["compare", "one.json", "other.json", "--plot", "found.gif"]) != 0
    said = capsys.readouterr()
    assert "a picture is a .svg or a .png file, got 'found.gif'" in said.err and "held-out prompts" not in said.out
