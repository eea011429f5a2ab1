"""What a recipe says of loading reaches the repository that it is about, all parts of it, and no other."""

from types import SimpleNamespace

import pytest

from alignkit.recipe import Recipe
from alignkit.run import models, on_policy
from alignkit.run.evaluate import _with_model

MODEL = {"name": "some/model", "dtype": "bfloat16", "revision": "v1", "trust_remote_code": True}
SOURCE = {"revision": "v1", "trust_remote_code": True}


@pytest.fixture
def loaded(monkeypatch):
    """(what, name, settings) of everything that is loaded."""
    calls = []
    config = SimpleNamespace(is_encoder_decoder=True)
    monkeypatch.setattr(models, "load_causal_or_seq2seq", lambda name, **k: calls.append(("model", name, k)))
    monkeypatch.setattr(on_policy, "load_causal_or_seq2seq", lambda name, **k: calls.append(("reference", name, k)))
    monkeypatch.setattr(models, "load_tokenizer", lambda name, **k: calls.append(("tokenizer", name, k)))
    monkeypatch.setattr(
        "transformers.AutoConfig.from_pretrained", lambda name, **k: calls.append(("config", name, k)) or config
    )
    return calls


def recipe(**model):
    return Recipe("grpo", {**MODEL, **model}, {}, adapter={"r": 2}, training={"output_dir": "runs/x"})


def test_model_tokenizer_and_configuration_are_of_one_revision(loaded):
    models.load_generator(recipe(), None)
    assert models.adapter_config(recipe()).task_type == "SEQ_2_SEQ_LM"
    assert loaded == [
        ("model", "some/model", {"dtype": "bfloat16", **SOURCE}),
        ("tokenizer", "some/model", SOURCE),
        ("config", "some/model", SOURCE),
    ]


def test_a_reference_has_settings_of_its_own(loaded):
    on_policy._named_reference(recipe(reference={"name": "other/model"}))
    on_policy._named_reference(recipe(reference={"name": "other/model", "revision": "v2", "dtype": "float32"}))
    assert on_policy._named_reference(recipe()) is None
    assert loaded == [
        ("reference", "other/model", {"dtype": "bfloat16"}),
        ("reference", "other/model", {"dtype": "float32", "revision": "v2"}),
    ]


def test_the_start_of_a_run_that_is_evaluated_is_loaded_as_in_training():
    judged = _with_model(recipe(), "runs/x/model").model
    assert judged["reference"] == MODEL, "against the start, in its revision"
    assert judged["name"] == "runs/x/model" and "revision" not in judged
    own = {"name": "other/model"}
    assert _with_model(recipe(reference=own), "runs/x/model").model["reference"] == own
