"""Chat: the prompt is the one that the model was trained on, and scores are those of the reward on it."""

import io
import json
import re
import sys

import pytest
from datasets import Dataset

import alignkit.chat as module
from alignkit import load_reward
from alignkit.cli import main
from alignkit.data.dialogue import Context, Dialogue, context_of, rows_of
from alignkit.errors import DataError
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.text import completion_text, last_turn

SCRIPT = ["i won", "thank you", "it was hard"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


class Turns:
    """A score that can be told by hand: words of the last turn, and a tenth for each line or message of the prompt."""

    __name__ = "turns"

    def __call__(self, prompts, completions, **columns):
        sizes = [len(p.splitlines()) if isinstance(p, str) else len(p) for p in prompts]
        return [len(last_turn(p).split()) + size / 10 for p, size in zip(prompts, sizes, strict=True)]


class Words:
    """A hundredth for each word of a text, as a reward of probabilities gives it."""

    __name__ = "words"
    positive_above = 0.5

    def __call__(self, prompts, completions, **columns):
        assert set(prompts) == {""}
        return [len(completion_text(text).split()) / 100 for text in completions]


@pytest.fixture
def talk(monkeypatch, capsys):
    """Chats through the command line with scripted lines; gives what was printed, and the rows of all answers."""

    def run(*arguments, lines=SCRIPT, code=0):
        rows = []
        real = module.generate_rows
        monkeypatch.setattr(module, "generate_rows", lambda *a, **k: [rows.append(r) or r for r in real(*a, **k)])
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        assert main(["chat", "--max-new-tokens", "4", "--seed", "1", *map(str, arguments)]) == code
        monkeypatch.setattr(module, "generate_rows", real)
        said = capsys.readouterr()
        return said.err if code else said.out, rows

    return run


def save(folder, template=None):
    tokenizer = tiny_tokenizer([*" ".join(SCRIPT).split(), "well", "done", "!"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    tiny_causal_lm().save_pretrained(folder)
    return folder


@pytest.fixture
def gru_run(tmp_path, monkeypatch):
    """A run of two steps of a GRU on dialogues."""
    rows = []
    for number in range(24):
        turns = ["i won", "well done !", f"game {number}", "was it hard ?"]
        rows.append({"utterances": turns, "emotions": [0] * 4})
    (tmp_path / "dailydialog").mkdir()
    for split, part in (("train", rows[:16]), ("validation", rows[16:])):
        Dataset.from_list(part).to_parquet(tmp_path / "dailydialog" / f"{split}.parquet")
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    recipe = tmp_path / "seq2seq.yaml"
    recipe.write_text(json.dumps({
        "trainer": "seq2seq",
        "model": {"scratch": {"architecture": "gru", "hidden_size": 16, "vocab_size": 300}},
        "data": {"use": "mix", "parts": [{"use": "dailydialog"}, {"use": "dailydialog", "reply_words": 3}]},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 2, "use_cpu": True, "report_to": "none",
                     "save_strategy": "no"},
        "evaluation": {"prompts": 4, "max_new_tokens": 4},
    }))  # fmt: skip
    return run_recipe(load_recipe(recipe))


def test_a_gru_chats_in_the_form_that_its_run_trained_it_on(gru_run, talk):
    said, rows = talk(gru_run, "--reward", f"{__file__}:Turns")
    spoken = [text for line, row in zip(SCRIPT, rows, strict=True) for text in (line, row["completion"])]
    assert all(completion_text(row["completion"]).strip() for row in rows), "the seed makes an empty answer"
    turns = [" ".join(text.split()) for text in spoken]
    trained = rows_of(Dialogue(turns, [i % 2 == 1 for i in range(6)], [""] * 6), turns=2, style="text")
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in trained]
    assert rows[0]["prompt"] == "i won\n" and rows[2]["prompt"].endswith("\nit was hard\n")
    assert [float(score) for score in re.findall(r"\[turns ([\d.]+)\]", said)] == [2.1, 2.2, 3.2]
    again, _ = talk(gru_run / "model", "--reward", f"{__file__}:Turns")
    assert again == said


def test_turns_are_set_by_hand_for_a_model_without_a_run(tmp_path, talk):
    _, rows = talk(save(tmp_path / "plain"), "--turns", "2")
    assert rows[0]["prompt"] == "i won\n"
    assert all(row["prompt"].endswith(f"{line}\n") for row, line in zip(rows, SCRIPT, strict=True))
    assert max(row["prompt"].count("\n") for row in rows) == 2
    _, rows = talk(save(tmp_path / "templated", TEMPLATE), "--turns", "2")
    assert [len(row["prompt"]) for row in rows] == [1, 2, 2]
    assert [message["role"] for message in rows[1]["prompt"]] == ["assistant", "user"]
    said, _ = talk(save(tmp_path / "plain"), "--turns", "0", code=2)
    assert "--turns is at least 1, got 0" in said


def test_look_ahead_is_scored_on_what_was_said_and_the_reply(tmp_path, talk):
    tiny_classifier().save_pretrained(tmp_path / "predictor")
    tiny_tokenizer([*" ".join(SCRIPT).split(), "well", "done", "!"]).save_pretrained(tmp_path / "predictor")
    spec = f"look_ahead: {{model: {tmp_path / 'predictor'}, label: 1}}"
    said, rows = talk(
        save(tmp_path / "lm"), "--seed", "7", "--turns", "2", "--reward", spec, "--user-reward", f"{__file__}:Words"
    )
    reward = load_reward("look_ahead", model=str(tmp_path / "predictor"), label=1)
    alone = [reward([line], [row["completion"]])[0] for line, row in zip(SCRIPT, rows, strict=True)]
    assert len(set(alone)) == 3, "a score that knows nothing of the reply proves nothing"
    shown = re.findall(r"^  \[(.*) ([\d.]+)\]$", said, re.MULTILINE)
    assert [name for name, _ in shown] == ["you: words", "look_ahead"] * 3
    expected = [
        score for line, foreseen in zip(SCRIPT, alone, strict=True) for score in (len(line.split()) / 100, foreseen)
    ]
    assert [float(score) for _, score in shown] == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("option", ["--reward", "--user-reward"])
def test_a_reward_that_needs_data_is_refused_before_the_model_loads(option, tmp_path, talk, monkeypatch):
    monkeypatch.setattr(module, "load_tokenizer", lambda name: pytest.fail("a model was loaded"))
    said, _ = talk(tmp_path / "none", option, "reference_overlap", code=2)
    assert "reward 'reference_overlap' needs column 'reference'" in said


class Terminal(io.StringIO):
    """Standard output that a person reads."""

    encoding = "UTF-8"

    def isatty(self):
        return True


def test_a_probability_has_a_bar_in_a_terminal_and_nowhere_else(monkeypatch):
    assert module._written(0.71, 0.5) == "0.710"
    monkeypatch.setattr(sys, "stdout", Terminal())
    shown = [module._written(*case) for case in ((0.71, 0.5), (0.0, 0.5), (1.0, 0.5), (0.71, None), (0.71, 0.0))]
    assert shown == ["0.710 ███████░░░", "0.000 ░░░░░░░░░░", "1.000 ██████████", "0.710", "0.710"]
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    assert module._written(0.71, 0.5) == "0.710"


def test_only_dialogues_have_a_context():
    assert context_of("empathetic_dialogues", turns=3, style="messages") == Context(3, "messages")
    assert context_of("personachat") == Context(2, "text")
    for use, settings in (
        ("sst2", {}),
        ("dailydialog", {"form": "turns"}),
        ("quickstart", {}),
        ("files", {"path": "x"}),
    ):
        assert context_of(use, **settings) is None
    parts = [{"use": "quickstart"}, {"use": "dailydialog", "turns": 1}]
    assert context_of("mix", parts=parts) == Context(1, "text")
    with pytest.raises(DataError, match="there is no data set 'dialogues'"):
        context_of("dialogues")
