"""How long completions of `alignkit generate` and `alignkit chat` are where nobody says it."""

import io
import sys

import pytest

from alignkit.cli import main
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.run.trained_model import longest_completion, recipe_of_run

PROMPT = "the movie is"


def room(prompt=PROMPT):
    return tiny_causal_lm().config.max_position_embeddings - len(tiny_tokenizer()(prompt)["input_ids"])


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    tiny_causal_lm().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder


@pytest.fixture
def asked(monkeypatch):
    """What the generation was told, in the place of generating."""
    lengths = []

    def note(model, tokenizer, examples, *, generation_config, **_):
        lengths.append(generation_config.max_new_tokens)
        return [{**example, "completion": " fine", "rewards": {}} for example in examples]

    monkeypatch.setattr("alignkit.run.generate.generate_rows", note)
    monkeypatch.setattr("alignkit.chat.generate_rows", note)
    return lengths


@pytest.mark.parametrize(
    ("recipe", "longest"),
    [
        ("trainer: ppo\ntraining: {max_completion_length: 3}\n", 3),
        ("trainer: sft\nevaluation: {max_new_tokens: 4}\n", 4),
        ("trainer: sft\nevaluation: [diversity]\n", 48),
        ("trainer: ppo\ntraining: {max_completion_length: 9999}\n", None),
    ],
)
def test_completions_are_as_long_as_the_runs_own_and_as_the_model_has_room_for(recipe, longest, run, asked, capsys):
    (run / "recipe.yaml").write_text(recipe)
    for model in (run, run / "model"):
        assert main(["generate", str(model), "--prompt", PROMPT]) == 0
    told = capsys.readouterr().err
    assert (f"completions have at most {room()} tokens, not 9999" in told) == (longest is None)
    assert main(["generate", str(run), "--prompt", PROMPT, "--max-new-tokens", "2"]) == 0
    assert asked == [longest or room(), longest or room(), 2]


def test_the_longest_prompt_of_all_leaves_the_room_and_it_is_told(run, asked, capsys):
    long = " ".join(["movie"] * 120)
    assert main(["generate", str(run / "model"), "--prompt", PROMPT, "--prompt", long]) == 0
    assert asked == [room(long)] and room(long) < 10
    assert "not 64: the model has room for no more behind the longest prompt, of 120 tokens" in capsys.readouterr().err
    assert main(["generate", str(run / "model"), "--prompt", " ".join(["movie"] * 128)]) == 2
    assert "128 positions; shorten the prompts" in capsys.readouterr().err


def test_an_encoder_decoder_reads_the_prompt_elsewhere(tmp_path, asked):
    tiny_seq2seq().save_pretrained(tmp_path / "t5")
    tiny_tokenizer().save_pretrained(tmp_path / "t5")
    assert main(["generate", str(tmp_path / "t5"), "--prompt", " ".join(["movie"] * 200)]) == 0
    assert asked == [64]


def test_a_chat_has_room_for_an_answer_or_says_that_it_has_none(run, asked, monkeypatch, capsys):
    (run / "recipe.yaml").write_text("trainer: ppo\ntraining: {max_completion_length: 9999}\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPT}\n{' '.join(['movie'] * 130)}\n{PROMPT}\n"))
    assert main(["chat", str(run)]) == 0
    assert asked == [room(), room()] and "has no room for an answer" in capsys.readouterr().out


def test_a_recipe_that_lies_about_is_not_the_models(run, tmp_path, monkeypatch):
    (run / "recipe.yaml").write_text("trainer: ppo\ntraining: {max_completion_length: 3}\n")
    (tmp_path / "recipe.yaml").write_text("trainer: ppo\ntraining: {max_completion_length: 7}\n")
    monkeypatch.chdir(tmp_path)
    assert recipe_of_run("gpt2") == {} and longest_completion({}) == 64
    assert longest_completion(recipe_of_run("run")) == longest_completion(recipe_of_run("run/model")) == 3
    tiny_causal_lm().save_pretrained("other")
    assert recipe_of_run("other") == {}


def test_a_run_that_does_not_say_has_its_trainers_length():
    from alignkit import PPOConfig

    assert longest_completion({"trainer": "ppo", "training": {}}) == PPOConfig(use_cpu=True).max_completion_length
