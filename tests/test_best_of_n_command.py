"""`alignkit generate --decoder best_of_n`."""

import json

import pytest

from alignkit.cli import main
from alignkit.models.recurrent import GRUSeq2SeqConfig, GRUSeq2SeqForConditionalGeneration
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer

REWARD = "mine.py:early"
MINE = """
def early(completions, **columns):
    return [sum(text.count(letter) for letter in "abcdefg") / 10 for text in completions]


def by_ids(completions, completion_ids, **columns):
    return [float(max(ids)) for ids in completion_ids]
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    kept = {}
    gru = GRUSeq2SeqForConditionalGeneration(GRUSeq2SeqConfig(vocab_size=len(tiny_tokenizer()), hidden_size=16))
    for name, model in (("causal", tiny_causal_lm()), ("gru", gru.eval())):
        kept[name] = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(kept[name])
        tiny_tokenizer().save_pretrained(kept[name])
    return kept


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(folder, *more):
    prompts = [word for text in ("the movie is", "a story of", "it") for word in ("--prompt", text)]
    ask = ["generate", str(folder), *prompts, "--max-new-tokens", "6", "--output", "out.jsonl"]
    assert main([*ask, *more]) == 0
    with open("out.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", ["causal", "gru"])
def test_more_candidates_raise_the_reward_above_that_of_the_first(kind, folders, here, capsys):
    rows = rows_of(folders[kind], "--decoder", "best_of_n", "--n", "16", "--reward", REWARD, "--batch-size", "2")
    assert [row["prompt"] for row in rows] == ["the movie is", "a story of", "it"]
    before = [row["first"]["rewards"]["early"] for row in rows]
    after = [row["rewards"]["early"] for row in rows]
    assert all(low <= high for low, high in zip(before, after, strict=True)) and sum(after) > sum(before)
    assert all(0 < row["length"] <= 6 for row in rows)
    assert rows == rows_of(
        folders[kind], "--decoder", "best_of_n", "--n", "16", "--reward", REWARD, "--batch-size", "2"
    )
    (one,) = rows_of(folders[kind], "--decoder", "best_of_n", "--n", "1", "--reward", REWARD)[:1]
    assert one["completion"] == one["first"]["completion"]
    capsys.readouterr()
    ask = ["generate", str(folders[kind]), "--prompt", "it", "--decoder", "best_of_n", "--reward", REWARD]
    assert main([*ask, "--max-new-tokens", "6"]) == 0
    said = capsys.readouterr().out
    assert said.index("first  early 0.") < said.index("chosen early ")


def test_weights_decide_what_is_chosen_and_every_score_is_told(folders, here):
    ask = ["--decoder", "best_of_n", "--n", "8", "--reward", "mine.py:by_ids"]
    liked = rows_of(folders["causal"], *ask, "--reward", "{early: {use: 'mine.py:early', weight: 1000}}")
    loathed = rows_of(folders["causal"], *ask, "--reward", "{early: {use: 'mine.py:early', weight: -1000}}")
    for high, low in zip(liked, loathed, strict=True):
        assert set(high["rewards"]) == {"by_ids", "early"}
        assert high["rewards"]["early"] > low["rewards"]["early"] and high["first"] == low["first"]


@pytest.mark.parametrize(
    "more, expected",
    [
        (["--decoder", "best_of_n"], "chooses by a reward; name one with --reward"),
        (["--n", "4"], "is for --decoder best_of_n"),
        (["--decoder", "best_of_n", "--reward", REWARD, "--n", "0"], "a whole number of 1 or more, got 0"),
        (["--decoder", "best_of_n", "--reward", REWARD, "--temperature", "0"], "take one above 0"),
        (["--decoder", "best_of", "--reward", REWARD], "did you mean 'best_of_n'?"),
        (["--temperature", "-1", "--count", "0"], "--count is at least 1, got 0; --temperature is at least 0, got -1"),
        (["--reward", "discriminator: {model: MODEL}"], "its scores would be random numbers"),
        (
            ["--reward", "discriminator: {model: MODEL, updates: lots}"],
            "updates: expected a whole number",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_said(more, expected, folders, here, capsys):
    more = [word.replace("MODEL", str(folders["causal"])) for word in more]
    assert main(["generate", str(folders["causal"]), "--prompt", "it", *more]) == 2
    assert expected in capsys.readouterr().err
