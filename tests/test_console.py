"""Tables and texts keep their lines where no terminal bounds them."""

import json
import os

import pytest

from alignkit.cli import main
from alignkit.console import WIDTH, standard_output

LONG = "the acting is good and the story is sad " * 6


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """No stream is a terminal, and the environment says nothing of one."""

    def refuse(stream):
        raise OSError("not a terminal")

    monkeypatch.setattr(os, "get_terminal_size", refuse)
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("columns", "width"), [(None, WIDTH), ("60", 60), ("many", WIDTH)])
@pytest.mark.parametrize("colour", [False, True])
def test_a_pipe_is_wide_unless_told(monkeypatch, columns, width, colour, capsys):
    if colour:
        monkeypatch.setenv("FORCE_COLOR", "1")
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert standard_output().width == width
    standard_output().print("a b " * 100)
    assert max(map(len, capsys.readouterr().out.splitlines())) in (width - 1, width)


def test_a_pipe_beside_a_terminal_is_as_wide_as_that(monkeypatch):
    def of_standard_error(stream):
        if stream != 2:
            raise OSError("not a terminal")
        return os.terminal_size((97, 20))

    monkeypatch.setattr(os, "get_terminal_size", of_standard_error)
    assert standard_output().width == 97


def test_names_and_intervals_are_not_broken(tmp_path, capsys):
    for name in ("the first system of all", "another system by that"):
        rows = [{"prompt": str(i), "rewards": {}, "metrics": {"sentence_bleu": i / 7 + len(name)}} for i in range(9)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    assert main(["compare", *map(str, sorted(tmp_path.iterdir(), reverse=True))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("sentence_bleu │ the first system of all │" in line for line in lines)
    assert any("another system by that" in line and "-1 │     -1 to -1 │ down" in line for line in lines)


def test_a_completion_is_one_line(tiny_run, capsys):
    assert main(["generate", tiny_run, "--prompt", LONG, "--max-new-tokens", "3", "--temperature", "0"]) == 0
    assert LONG in capsys.readouterr().out


@pytest.fixture
def tiny_run(tmp_path):
    from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer

    tiny_causal_lm().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")
