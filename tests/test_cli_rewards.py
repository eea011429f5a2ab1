"""`alignkit rewards ...` as a reward author types it."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from alignkit import cli_rewards
from alignkit.cli_rewards.scoring import show_scores
from alignkit.errors import DataError, MissingColumnError, RewardError, RewardLoadError

ROWS = [
    {"prompt": "Hello", "completion": "one two three", "reference": "one two"},
    {"prompt": "Bye [bold]", "completion": "", "reference": "bye"},
]
CHAT = [
    {
        "prompt": [{"role": "user", "content": "Hello"}],
        "completion": [{"role": "assistant", "content": "one two three"}],
        "rewards": {"other": 1.0},
    }
]


@pytest.fixture
def alignkit():
    parser = argparse.ArgumentParser()
    cli_rewards.add_parser(parser.add_subparsers(required=True))

    def run(*arguments):
        args = parser.parse_args(["rewards", *map(str, arguments)])
        return args.handler(args)

    return run


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_list_shows_name_distribution_and_meaning(alignkit, capsys):
    assert alignkit("list") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sentiment")]
    assert "alignkit-rewards" in line and "How likely a completion is positive" in line


def test_list_as_json_can_be_read_by_programs(alignkit, capsys):
    alignkit("list", "--json")
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["length"]["target"] == "alignkit_rewards.length:Length" and entries["length"]["error"] is None


def test_list_answers_in_under_half_a_second():
    command = [sys.executable, "-m", "alignkit", "rewards", "list"]
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run(command, check=True, capture_output=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    # Processor time, the best of five: the claim is about the program, not about what else the machine does.
    assert min(seconds) < 0.5, seconds


def test_show_tells_meaning_settings_columns_and_source(alignkit, capsys):
    assert alignkit("show", "length") == 0
    out = capsys.readouterr().out
    assert "1 at the wanted length" in out and "target: float" in out and "alignkit-rewards" in out


def test_show_works_for_a_function_in_a_file(alignkit, capsys, tmp_path):
    (tmp_path / "mine.py").write_text('def kind(completions, persona, **columns):\n    """Kindness."""\n')
    alignkit("show", f"{tmp_path}/mine.py:kind")
    out = capsys.readouterr().out
    assert "Kindness." in out and "columns    persona" in out
    with pytest.raises(RewardLoadError, match="--no-code"):
        alignkit("show", f"{tmp_path}/mine.py:kind", "--no-code")
    with pytest.raises(RewardError, match=r"^inner\.trust_remote_code: refused.*--no-code"):
        alignkit("check", "clip", "inner={use: sentiment, trust_remote_code: true}", "--no-code")


def test_check_reports_each_check_and_fails_with_code_1(alignkit, capsys, tmp_path):
    assert alignkit("check", "length", "target=[2, 4]") == 0
    assert "16 passed, 0 failed, 3 skipped" in capsys.readouterr().out
    (tmp_path / "bad.py").write_text(
        "import random\ndef bad(completions, **columns):\n    return [random.random() for _ in completions]\n"
    )
    assert alignkit("check", f"{tmp_path}/bad.py:bad") == 1
    assert "FAIL  is_deterministic" in capsys.readouterr().out


def test_check_uses_samples_of_ones_own(alignkit, capsys, samples):
    assert alignkit("check", "reference_overlap", "--samples", samples, "--skip", "check_takes_odd_texts") == 0
    assert "left out as asked" in capsys.readouterr().out


def test_score_prints_a_table_and_writes_rows(alignkit, capsys, samples, tmp_path):
    output = tmp_path / "scored.jsonl"
    assert alignkit("score", "length", samples, "target=3", "--output", output) == 0
    out = capsys.readouterr().out
    assert "1.0000" in out and "Bye [bold]" in out and "2 completions, mean 0.5" in out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["rewards"] for row in rows] == [{"length": 1.0}, {"length": 0.0}]
    assert rows[0]["reference"] == "one two"


def test_score_replays_logged_conversations_and_keeps_their_rewards(alignkit, capsys, tmp_path):
    path, output = tmp_path / "samples.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CHAT))
    alignkit("score", "length", path, "target=3", "--output", output)
    [row] = [json.loads(line) for line in output.read_text().splitlines()]
    assert row["rewards"] == {"other": 1.0, "length": 1.0} and row["prompt"] == CHAT[0]["prompt"]


def test_score_reads_csv_and_parquet_with_columns_named(alignkit, capsys, tmp_path):
    import pandas

    frame = pandas.DataFrame({"question": ["Hello"], "answer": ["one two three"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    for path in (tmp_path / "a.csv", tmp_path / "a.parquet"):
        alignkit("score", "length", path, "target=3", "--prompt", "question", "--completion", "answer")
        assert "mean 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["length", "{samples}", "target"], RewardError, "key=value"),
        (["length", "{samples}", "target=[1"], RewardError, "cannot be read"),
        (["length", "{samples}", "targt=3"], RewardLoadError, "Did you mean 'target'"),
        (["length", "absent.jsonl", "target=3"], DataError, "absent.jsonl"),
        (["length", "{samples}", "target=3", "--completion", "answer"], DataError, "no column 'answer'"),
        (["reference_overlap", "{samples}", "column=gold"], MissingColumnError, "needs column 'gold'"),
    ],
)
def test_mistakes_are_answered_in_words(alignkit, samples, arguments, error, words):
    with pytest.raises(error, match=words):
        alignkit("score", *(argument.format(samples=samples) for argument in arguments))


def test_a_broken_file_is_named(alignkit, tmp_path):
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"broken\.parquet"):
        alignkit("score", "length", path, "target=3")


def test_new_writes_a_plugin_and_says_what_next(alignkit, capsys, tmp_path):
    assert alignkit("new", "politeness", "--folder", tmp_path / "p") == 0
    out = capsys.readouterr().out
    assert "pyproject.toml" in out and "pip install -e ." in out
    assert (tmp_path / "p" / "alignkit_politeness" / "__init__.py").is_file()


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_the_score_is_shown_however_narrow_the_window(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    show_scores("length", ["what do you say of it? " * 9], ["a long answer, of many words. " * 9], [0.625], 1)
    assert "length" in (out := capsys.readouterr().out) and "0.625" in out
