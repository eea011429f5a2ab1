"""How likely a model finds the references of held-out prompts, against its own loss; the key that asks for it."""

import json
import math
from pathlib import Path

import pytest
import torch

from alignkit.decoding.generation import generation_config_for
from alignkit.held_out import generate_rows
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.recipe import RecipeError, load_recipe
from alignkit.run import run_recipe
from alignkit.trainers.evaluation import summarise

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
EXAMPLES = [
    {"prompt": "the movie is", "reference": " good and honest"},
    {"prompt": "a film", "reference": None},
    {"prompt": "this story was a very long one", "reference": " bad"},
    {"prompt": "it", "reference": " slow " * 30},
]


def rows_of(model, limit=8, **more):
    tokenizer = tiny_tokenizer()
    config = generation_config_for(model, tokenizer, max_new_tokens=limit, temperature=0.4)
    return generate_rows(model, tokenizer, EXAMPLES, generation_config=config, with_kl=False, batch_size=3, **more)


def tokens(text, limit=8):
    tokenizer = tiny_tokenizer()
    return [*tokenizer(text=text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][:limit]


@pytest.mark.parametrize("make", [tiny_causal_lm, tiny_seq2seq, lambda: tiny_seq2seq("bart")])
def test_the_likelihood_of_references_is_the_models_own_loss(make):
    """One row at a time, without padding, through the labels of transformers' own forward."""
    model = make().eval()
    rows = rows_of(model, score_references=True)
    for example, row in zip(EXAMPLES, rows, strict=True):
        if example["reference"] is None:
            assert (row["reference_nll"], row["reference_nll_sampled"], row["reference_tokens"]) == (None, None, 0)
            continue
        wanted = tokens(example["reference"])
        prompt = tiny_tokenizer()(text=example["prompt"])["input_ids"]
        if model.config.is_encoder_decoder:
            given = {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([wanted])}
        else:
            labels = [-100] * len(prompt) + wanted
            given = {"input_ids": torch.tensor([prompt + wanted]), "labels": torch.tensor([labels])}
        with torch.no_grad():
            expected = float(model(**given).loss) * len(wanted)
        assert row["reference_tokens"] == len(wanted)
        assert row["reference_nll"] == pytest.approx(expected, rel=1e-4)
    known = [row for row in rows if row["reference_nll"] is not None]
    nats = sum(row["reference_nll"] for row in known) / sum(row["reference_tokens"] for row in known)
    assert summarise(rows, [])["reference_perplexity"] == pytest.approx(math.exp(nats))


def test_the_likelihood_of_references_at_the_temperature_that_samples():
    model, tokenizer = tiny_causal_lm().eval(), tiny_tokenizer()
    rows = rows_of(model, score_references=True)  # samples at 0.4
    for example, row in zip(EXAMPLES, rows, strict=True):
        if example["reference"] is None:
            continue
        prompt, wanted = tokenizer(text=example["prompt"])["input_ids"], tokens(example["reference"])
        with torch.no_grad():
            logits = model(torch.tensor([prompt + wanted])).logits[0, len(prompt) - 1 : -1].double() / 0.4
        own = logits.log_softmax(-1).gather(1, torch.tensor(wanted)[:, None]).sum()
        assert row["reference_nll_sampled"] == pytest.approx(-float(own), rel=1e-4) != row["reference_nll"]
    figures = summarise(rows, [])
    assert figures["reference_perplexity_sampled"] != figures["reference_perplexity"]
    for temperature, known in ((1.0, True), (0.0, False)):
        config = generation_config_for(model, tokenizer, max_new_tokens=8, temperature=temperature)
        rows = generate_rows(model, tokenizer, EXAMPLES, generation_config=config, with_kl=False, score_references=True)
        figures = summarise(rows, [])
        assert figures.get("reference_perplexity_sampled") == (figures["reference_perplexity"] if known else None)


def test_only_where_it_is_asked_for_and_nothing_else_changes():
    model = tiny_causal_lm().eval()
    plain, scored = rows_of(model), rows_of(model, score_references=True)
    assert "reference_nll" not in plain[0] and "reference_perplexity" not in summarise(plain, [])
    assert [row["completion"] for row in plain] == [row["completion"] for row in scored]


def test_a_recipe_asks_for_it(tiny_quickstart, tmp_path):
    folder = run_recipe(
        load_recipe(
            RECIPES / "quickstart.yaml",
            [*tiny_quickstart, "evaluation.references=true", f"training.output_dir={tmp_path}/run"],
        )
    )
    after = json.loads((folder / "results.json").read_text())["after"]
    assert after["reference_perplexity"] > 1


def test_a_classifier_which_completes_nothing_refuses_to_be_asked():
    with pytest.raises(RecipeError, match=r"evaluation\.references: only the trainer 'ppo' or .* or 'seq2seq' has it"):
        load_recipe(RECIPES / "quickstart" / "classifier.yaml", ["evaluation.references=true"])
