"""`alignkit generate --decoder mcts` and `das`."""

import json
import logging
import subprocess
import sys

import pytest

from alignkit.cli import main
from alignkit.decoding.choosing import CHOOSERS
from alignkit.models.recurrent import GRUSeq2SeqConfig, GRUSeq2SeqForConditionalGeneration
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.search_options import DECODERS

REWARD = "mine.py:early"
MINE = """
def early(completions, **columns):
    return [min(1.0, sum(text.count(letter) for letter in "abcdefg") / 20) for text in completions]


def long(completions, **columns):
    return [-float(len(text)) for text in completions]


class Told:
    __name__ = "told"
    begun = 0

    def __call__(self, prompts, completions, **columns):
        return [0.5] * len(completions)

    def begin(self, prompts, processing_class, columns):
        Told.begun += 1
        print("begun with", len(prompts))
        return None
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    kept = {}
    gru = GRUSeq2SeqForConditionalGeneration(GRUSeq2SeqConfig(vocab_size=len(tiny_tokenizer()), hidden_size=16))
    for name, model in (("causal", tiny_causal_lm()), ("t5", tiny_seq2seq()), ("gru", gru.eval())):
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
    ask = ["generate", str(folder), *prompts, "--max-new-tokens", "5", "--output", "out.jsonl", "--reward", REWARD]
    assert main([*ask, *more]) == 0
    with open("out.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", ["causal", "t5", "gru"])
@pytest.mark.parametrize(
    "search",
    [
        ["mcts", "--simulations", "40", "--children", "10", "--exploration", "1"],
        ["das", "--beams", "4", "--candidates", "12", "--alpha", "20"],
    ],
    ids=lambda words: words[0],
)
def test_a_search_finds_more_reward_than_plain_sampling(kind, search, folders, here, capsys):
    rows = rows_of(folders[kind], "--decoder", *search, "--batch-size", "2")
    assert [row["prompt"] for row in rows] == ["the movie is", "a story of", "it"]
    before, after = ([row["rewards"]["early"] for row in part] for part in ([r["sample"] for r in rows], rows))
    assert sum(after) > sum(before)
    assert all(0 < row["length"] <= 5 and "log_density" not in row for row in rows)


def test_what_is_drawn_has_a_density_and_what_is_shown_has_both(folders, here, capsys):
    how = ["--decoder", "mcts", "--simulations", "5", "--visit-temperature", "1", "--policy-share", "0.1"]
    assert all(row["log_density"] < 0 for row in rows_of(folders["causal"], *how))
    how = ["--decoder", "das", "--sample", "--policy-share", "0.1"]
    assert all(row["log_density"] < 0 for row in rows_of(folders["causal"], *how))
    capsys.readouterr()
    ask = ["generate", str(folders["causal"]), "--prompt", "it", "--decoder", "das", "--reward", REWARD]
    assert main([*ask, "--max-new-tokens", "5"]) == 0
    said = capsys.readouterr().out
    assert said.index("sample early 0.") < said.index("found  early ")


def test_a_reward_by_itself_is_asked_whether_it_reads_tokens(folders, here, capsys):
    ask = ["generate", str(folders["causal"]), "--prompt", "it", "--decoder", "mcts", "--simulations", "3"]
    assert main([*ask, "--max-new-tokens", "2", "--reward", "mine.py:Told"]) == 0
    assert "begun with 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, expected",
    [
        (["--decoder", "mcts"], "--decoder mcts chooses by a reward; name one with --reward"),
        (["--decoder", "mcts", "--reward", REWARD, "--beams", "3"], "--beams is for --decoder das, not for mcts"),
        (["--reward", REWARD, "--policy-share", "0.3"], "--policy-share is for --decoder mcts and das, not for sample"),
        (["--decoder", "mcts", "--reward", REWARD, "--rollout-temperature", "1"], "is for value='rollout'"),
        (["--decoder", "mcts", "--reward", REWARD, "--simulations", "0"], "a whole number of 1 or more, got 0"),
        (["--decoder", "mcts", "--reward", REWARD, "--backup", "sum"], "backup is one of max, mean; got 'sum'"),
        (["--decoder", "das", "--reward", "mine.py:long"], "set reward_as='exponential'"),
        (["--decoder", "mtcs", "--reward", REWARD], "did you mean 'mcts'?"),
        (["--decoder", "das", "--reward", REWARD, "--n", "4"], "--n 4 is for --decoder best_of_n"),
        (["--decoder", "mcts", "--reward", REWARD, "--max-new-tokens", "9999"], "(--max-new-tokens) to 127 or less"),
        (["--max-new-tokens", "9999"], "positions; lower max_new_tokens (--max-new-tokens) to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_said(more, expected, folders, here, capsys):
    assert main(["generate", str(folders["causal"]), "--prompt", "it", *more]) == 2
    assert expected in capsys.readouterr().err


def test_a_model_of_dialogues_is_not_given_a_turn_without_its_end_unnoticed(tmp_path, capsys):
    run = tmp_path / "bot"
    run.mkdir()
    (run / "recipe.yaml").write_text("trainer: sft\nmodel: x\ndata: {use: dailydialog}\n")
    tiny_causal_lm().save_pretrained(run / "model")
    tiny_tokenizer().save_pretrained(run / "model")
    said = "1 of 2 prompts do not end in a line break"
    command = ["generate", str(run), "--max-new-tokens", "2"]
    assert main([*command, "--prompt", "a film", "--prompt", "a film\n"]) == 0
    assert said in capsys.readouterr().err
    assert main([*command, "--prompt", "a film\n"]) == 0
    assert "line break" not in capsys.readouterr().err
    (run / "recipe.yaml").write_text("trainer: sft\nmodel: x\ndata: {use: imdb}\n")
    assert main([*command, "--prompt", "a film"]) == 0
    assert "line break" not in capsys.readouterr().err


def test_the_token_that_begins_a_text_is_not_shown(folders, here, capsys):
    begins = tiny_tokenizer().eos_token
    ask = ["generate", str(folders["causal"]), "--max-new-tokens", "2", "--reward", REWARD]
    assert main([*ask, "--prompt", begins, "--prompt", "it"]) == 0
    said = capsys.readouterr().out
    assert begins not in said and "\nit" in said and said.count("early ") == 2


def test_the_light_table_of_decoders_names_those_that_there_are():
    assert ("sample", *CHOOSERS) == DECODERS


def test_a_misspelled_decoder_is_named_before_torch_is_loaded(folders):
    """In a process of its own, where importing torch is an error."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from alignkit.cli import main\n"
        "sys.exit(main(['generate', 'no-model', '--prompt', 'a', '--decoder', 'mtcs', '--reward', 'length']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no decoder 'mtcs'; did you mean 'mcts'?" in done.stderr, done.stderr


def test_a_reward_below_zero_is_warned_of_once_and_no_opinion_is_shown(folders, here, capsys, caplog):
    ask = ["generate", str(folders["causal"]), "--prompt", "it", "--max-new-tokens", "3", "--simulations", "4"]
    with caplog.at_level(logging.WARNING):
        assert main([*ask, "--decoder", "mcts", "--reward", "mine.py:long"]) == 0
    warned = [record.getMessage() for record in caplog.records if "never visited counts 0" in record.getMessage()]
    assert len(warned) == 1 and "{use: squash, reward: long, kind: sigmoid}" in warned[0]
    caplog.clear()
    (here / "mine.py").write_text(
        "def big(completions, **columns):\n    return [40.0] * len(completions)\n\n\n"
        "def low(completions, **columns):\n    return [-90.0] * len(completions)\n"
    )
    with caplog.at_level(logging.WARNING):
        assert main([*ask, "--decoder", "mcts", "--reward", "mine.py:big"]) == 0
        assert main([*ask, "--decoder", "mcts", "--reward", "mine.py:big", "--reward", "mine.py:low"]) == 0
    warned = [record.getMessage() for record in caplog.records if "reward '" in record.getMessage()]
    assert len(warned) == 2 and "reward 'big' gave 40: above 1 values outweigh the policy's prior" in warned[0]
    assert "reward 'big + low' gave -50" in warned[1] and "Bend those of its rewards (big, low)" in warned[1]
    (here / "mine.py").write_text("def silent(completions, **columns):\n    return [None] * len(completions)\n")
    assert main([*ask, "--decoder", "mcts", "--reward", "mine.py:silent"]) == 0
    assert "silent no opinion" in capsys.readouterr().out


def test_messages_stand_on_lines_of_their_own_and_need_a_chat_template(here, tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    (tmp_path / "said.jsonl").write_text('{"prompt": [{"role": "user", "content": "it was"}]}\n')
    ask = ["--prompts", str(tmp_path / "said.jsonl"), "--max-new-tokens", "3"]
    for name in ("text", "messages"):
        tiny_causal_lm().save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    assert main(["generate", str(tmp_path / "messages"), *ask]) == 0
    assert "user: it was\n" in capsys.readouterr().out
    assert main(["generate", str(tmp_path / "text"), *ask]) == 2
    assert "the prompts are messages, and the tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(("decoder", "draws"), [("mcts", "--visit-temperature 1"), ("das", "--sample")])
def test_several_of_a_search_that_draws_nothing_are_refused(decoder, draws, capsys):
    ask = ["generate", "nowhere", "--prompt", "it", "--decoder", decoder, "--reward", "length", "--count", "3"]
    assert main(ask) == 2
    assert f"would find the same text 3 times; let it draw with {draws}" in capsys.readouterr().err
    assert main([*ask, *draws.split()]) == 2
    assert "the same text" not in capsys.readouterr().err  # but there is no such model


def test_a_composition_is_a_reward_as_docs_write_it(folders, here, capsys):
    written = "{use: squash, reward: {use: 'mine.py:long'}, kind: sigmoid}"
    ask = ["generate", str(folders["causal"]), "--prompt", "it", "--max-new-tokens", "3", "--reward", written]
    assert main([*ask, "--output", "some/where/out.jsonl"]) == 0
    [row] = [json.loads(line) for line in (here / "some/where/out.jsonl").read_text().splitlines()]
    assert list(row["rewards"]) == ["squash"]


def test_several_rewards_are_named_where_their_sum_is_wrong(folders, here, capsys):
    ask = ["generate", str(folders["causal"]), "--prompt", "it", "--max-new-tokens", "3", "--decoder", "das"]
    assert main([*ask, "--reward", "mine.py:long", "--reward", "length: {target: 3}"]) != 0
    assert "'long + length' gave" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--top-p", "0"], "--top-p: expected a number above 0, up to 1 (all tokens), got 0"),
        (["--top-p", "2"], "got 2"),
        (["--top-k", "-5"], "--top-k: expected a whole number from 0 (all tokens) on, got -5"),
        (["--output", "."], "--output: . is a folder; give a file in it"),
    ],
)
def test_how_to_sample_is_checked_before_anything_is_loaded(option, said, here, capsys):
    assert main(["generate", "no-such-model", "--prompt", "it", *option]) != 0
    assert said in capsys.readouterr().err
