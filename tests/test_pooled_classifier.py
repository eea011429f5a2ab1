"""A classifier that reads the mean of an encoder's states: recomputed, saved, trained, used as a reward."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, DistilBertConfig, DistilBertModel

from alignkit import load_reward
from alignkit.errors import ModelError
from alignkit.models.loading import load_classifier
from alignkit.models.pooled_classifier import PooledClassifier, mean_of_tokens
from alignkit.models.tiny import WORDS, tiny_classifier, tiny_seq2seq, tiny_tokenizer
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.run.evaluate import evaluate_run

NAMES = {0: "NEGATIVE", 1: "POSITIVE"}


def distilbert() -> DistilBertModel:
    """An encoder without token types."""
    return DistilBertModel(
        DistilBertConfig(vocab_size=64, dim=16, hidden_dim=32, n_heads=2, n_layers=2, max_position_embeddings=32)
    )


def saved(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(params=["bert", "distilbert"])
def encoder(request):
    return tiny_classifier().bert.eval() if request.param == "bert" else distilbert().eval()


def test_logits_are_a_linear_map_of_the_mean_over_real_tokens(encoder, tmp_path):
    model, tokenizer = load_classifier(saved(encoder, tmp_path / "e"), new_head=True, id2label=NAMES, pooling="mean")
    assert isinstance(model, PooledClassifier) and model.config.id2label == NAMES
    batch = tokenizer(["a good film", "bad"], return_tensors="pt", padding=True, return_token_type_ids=False)
    found = model(**batch).logits
    for text, row in zip(["a good film", "bad"], found, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        states = encoder(ids).last_hidden_state[0]
        expected = states.sum(0) / len(states) @ model.classifier.weight.T + model.classifier.bias
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


def test_what_stands_at_padding_is_never_read():
    states, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 1, 1]])
    wild = states.clone()
    wild[0, 2] = float("nan")
    torch.testing.assert_close(mean_of_tokens(wild, mask)[0], states[0, :2].mean(0))
    assert (mean_of_tokens(states, torch.zeros_like(mask)) == 0).all()


def test_token_types_count_where_the_encoder_knows_them(encoder, tmp_path):
    model, tokenizer = load_classifier(saved(encoder, tmp_path / "e"), new_head=True, num_labels=2, pooling="mean")
    ids = tokenizer(["a good film"], return_tensors="pt")["input_ids"]
    types = torch.ones_like(ids)
    same = torch.equal(model(ids, token_type_ids=types).logits, model(ids).logits)
    assert same is isinstance(encoder, DistilBertModel)


def test_a_saved_one_is_the_same_and_holds_no_pooler(encoder, tmp_path):
    model, tokenizer = load_classifier(saved(encoder, tmp_path / "e"), new_head=True, id2label=NAMES, pooling="mean")
    assert not any("pooler" in key for key in model.state_dict())
    folder = saved(model, tmp_path / "classifier")
    ids = tokenizer(["a good film"], return_tensors="pt")["input_ids"]
    for again in (load_classifier(folder)[0], AutoModelForSequenceClassification.from_pretrained(folder).eval()):
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert again.config.id2label == NAMES
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_the_attention_and_precision_that_were_asked_for(tmp_path):
    folder = saved(tiny_classifier().bert, tmp_path / "e")
    how = {"new_head": True, "num_labels": 3, "pooling": "mean", "attn_implementation": "eager", "dtype": "bfloat16"}
    model, _ = load_classifier(folder, **how)
    assert model.encoder.config._attn_implementation == "eager" and model.num_labels == 3
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_what_it_cannot_be_is_refused_in_words(tmp_path):
    folder = saved(tiny_classifier().bert, tmp_path / "e")
    with pytest.raises(ModelError, match=r"pooling is one of mean, or left out; got 'cls'"):
        load_classifier(folder, new_head=True, num_labels=2, pooling="cls")
    with pytest.raises(ModelError, match="pooling describe a new head; add new_head=True"):
        load_classifier(folder, pooling="mean")
    with pytest.raises(ModelError, match=r"pooling='mean' reads an encoder's text.*encoder-decoder"):
        load_classifier(saved(tiny_seq2seq(), tmp_path / "t5"), new_head=True, num_labels=2, pooling="mean")


def test_a_recipe_trains_and_calibrates_one_and_it_serves_as_a_reward_of_texts_and_of_pairs(tmp_path):
    saved(tiny_classifier().bert, tmp_path / "encoder")
    moods = [("i hated it", 0), ("it was bad", 0), ("i loved it", 1), ("it was good", 1)]
    replies = [f"{first} {second}" for first in WORDS[3:12] for second in WORDS[3:12]]
    rows = [(f"{mood} {reply}", reply, label) for reply in replies for mood, label in moods]
    data = Dataset.from_dict(dict(zip(("text", "text_pair", "label"), zip(*rows, strict=True), strict=True)))
    data.to_parquet(tmp_path / "data.parquet")
    recipe = {
        "trainer": "classifier",
        "model": {
            "name": str(tmp_path / "encoder"),
            "labels": list(NAMES.values()),
            "pooling": "mean",
            "calibrate": True,
        },
        "data": {"use": "files", "path": str(tmp_path / "data.parquet"), "validation_share": 0.25},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 60,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "bf16": False,
            "save_strategy": "no",
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run = run_recipe(load_recipe(tmp_path / "recipe.yaml"))
    results = json.loads((run / "results.json").read_text())
    assert results["after"]["accuracy"] == 1.0 and "temperature" in results["after"]
    reward = load_reward("look_ahead", model=str(run / "model"))
    bad, good = reward(prompts=["it was bad", "i loved it"], completions=["the film", "the film"])
    assert bad < 0.5 < good
    judged = evaluate_run(run)  # the recipe asks for a pooled head, which the saved model has by now
    assert judged["nll"] == pytest.approx(results["after"]["nll"], abs=1e-6)
    alone = load_reward("sentiment", model=str(run / "model"))
    assert len(alone(prompts=["", ""], completions=["i hated it", "i loved it"])) == 2
