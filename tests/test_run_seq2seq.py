"""Runs of encoder-decoders: from scratch with an emotion head, a pretrained one, resumed, and on into REINFORCE."""

import json

import pytest
from datasets import Dataset

from alignkit.errors import DataError, ModelError
from alignkit.json_lines import read_json_lines
from alignkit.models.from_scratch import build_seq2seq, spec_problems
from alignkit.models.loading import load_causal_or_seq2seq
from alignkit.models.recurrent import GRUSeq2SeqForConditionalGeneration
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.recipe import RecipeError, load_recipe
from alignkit.run import run_recipe

ANSWERS = {"proud": ("i won", "well done !"), "sad": ("i lost", "so sorry .")}


@pytest.fixture
def dialogues(tmp_path, monkeypatch):
    """Every proud speaker is congratulated and every sad one pitied."""
    rows = []
    for number in range(80):
        emotion = ["proud", "sad"][number % 2]
        said, answer = ANSWERS[emotion]
        rows.append({
            "conv_id": str(number), "emotion": emotion, "situation": "-", "speakers": ["speaker", "listener"],
            "utterances": [f"{said} game {number}", answer],
        })  # fmt: skip
    (tmp_path / "empathetic_dialogues").mkdir()
    for split, part in (("train", rows[:64]), ("validation", rows[64:])):
        Dataset.from_list(part).to_parquet(tmp_path / "empathetic_dialogues" / f"{split}.parquet")
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))


def recipe(folder, **changes):
    content = {
        "trainer": "seq2seq",
        "model": {"scratch": {"hidden_size": 32, "vocab_size": 300, "architecture": "gru", "emotions": True}},
        "data": {"use": "empathetic_dialogues"},
        "training": {
            "output_dir": str(folder / "run"), "max_steps": 250, "learning_rate": 1e-2, "report_to": "none",
            "use_cpu": True, "per_device_train_batch_size": 16, "save_strategy": "no", "logging_steps": 20,
        },
        "evaluation": {"temperature": 0, "prompts": 16, "max_new_tokens": 16, "metrics": {"diversity": {}}},
    }  # fmt: skip
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) and key in content else value
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content))
    return path


def test_a_gru_learns_to_answer_and_to_name_the_emotion(dialogues, tmp_path):
    folder = run_recipe(load_recipe(recipe(tmp_path)))
    results = json.loads((folder / "results.json").read_text())
    assert results["after"]["loss"] < 0.1 < 2 < results["before"]["loss"]
    assert results["after"]["emotion_accuracy"] == 1.0
    after = [row for row in read_json_lines(folder / "samples.jsonl") if row["phase"] == "after"]
    assert after and all(row["completion"] == row["reference"] for row in after)
    model = load_causal_or_seq2seq(folder / "model")
    assert isinstance(model, GRUSeq2SeqForConditionalGeneration) and model.config.emotions == ["proud", "sad"]


def test_it_is_a_policy_afterwards(dialogues, tmp_path):
    start = run_recipe(load_recipe(recipe(tmp_path)))
    hybrid = {
        "trainer": "reinforce",
        "model": str(start / "model"),
        "data": {"use": "empathetic_dialogues"},
        "rewards": {"length": {"target": 2}},
        "training": {
            "output_dir": str(tmp_path / "hybrid"), "max_steps": 4, "rl_weight": 0.25, "temperature": 0.4,
            "baseline": "learned", "per_device_train_batch_size": 16, "max_completion_length": 12, "report_to": "none",
            "use_cpu": True, "logging_steps": 1, "save_strategy": "no",
        },
        "evaluation": {"temperature": 0, "metrics": {"diversity": {}}},
    }  # fmt: skip
    path = tmp_path / "hybrid.yaml"
    path.write_text(json.dumps(hybrid))
    folder = run_recipe(load_recipe(path))
    logged = [row for row in read_json_lines(folder / "metrics.jsonl") if "mle_loss" in row]
    assert len(logged) == 4 and all(row["mle_loss"] < 0.5 for row in logged)
    assert json.loads((folder / "results.json").read_text())["before"]["reward"] == pytest.approx(1.0, abs=0.2)


def test_a_pretrained_encoder_decoder_learns_too(dialogues, tmp_path):
    tiny_seq2seq().save_pretrained(tmp_path / "t5")
    tiny_tokenizer(["i", "won", "lost", "game", "well", "done", "!", "so", "sorry", "."]).save_pretrained(
        tmp_path / "t5"
    )
    changes = {"model": {"scratch": None, "name": str(tmp_path / "t5")}, "training": {"max_steps": 60}}
    path = recipe(tmp_path, **changes)
    content = json.loads(path.read_text())
    del content["model"]["scratch"]
    path.write_text(json.dumps(content))
    results = json.loads((run_recipe(load_recipe(path)) / "results.json").read_text())
    assert results["after"]["loss"] < results["before"]["loss"] - 1
    assert "emotion_accuracy" not in results["after"]


def test_a_causal_model_is_refused(dialogues, tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    path = recipe(tmp_path)
    content = {**json.loads(path.read_text()), "model": str(tmp_path / "gpt2")}
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="trains encoder-decoders, and GPT2LMHeadModel is none; use the trainer sft"):
        run_recipe(load_recipe(path))


def test_data_without_references_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"seq2seq learns from prompt and reference; .* lacks prompt, reference"):
        run_recipe(load_recipe(recipe(tmp_path, data={"use": "quickstart", "form": "text"})))


def test_what_a_new_encoder_decoder_cannot_be(tmp_path):
    with pytest.raises(RecipeError, match=r"model\.scratch: a new encoder-decoder .*'heads'"):
        load_recipe(recipe(tmp_path, model={"scratch": {"architecture": "gru", "heads": 4}}))
    assert spec_problems({"hidden_size": 0}, "seq2seq") == [
        "a new encoder-decoder: hidden_size must be at least 1, got 0"
    ]
    with pytest.raises(ModelError, match="emotions: true needs data with a column `emotion`"):
        build_seq2seq({"emotions": True}, ["text"])
