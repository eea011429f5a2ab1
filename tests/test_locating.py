"""Where a model of a name is found, and the tokenizer that comes with it."""

import os
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from alignkit.errors import ModelError
from alignkit.models.loading import load_causal_or_seq2seq, load_classifier, load_tokenizer
from alignkit.models.locating import resolve_model
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("nothing_but_this_machine")


def saved(model, folder, tokenizer=True):
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_name_is_looked_for_on_the_shelves(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    saved(tiny_causal_lm(), two / "small-lm")
    saved(tiny_causal_lm(), one / "org" / "other-lm")
    monkeypatch.setenv("ALIGNKIT_MODELS", f"{one}{os.pathsep}{two}")
    assert resolve_model("small-lm") == resolve_model("anyone/small-lm") == str(two / "small-lm")
    assert resolve_model("org/other-lm") == str(one / "org" / "other-lm")
    assert resolve_model("gpt2") == "gpt2", "what is on no shelf is a hub id"
    saved(tiny_causal_lm(), Path("small-lm"))
    assert resolve_model("small-lm") == "small-lm", "a folder right here comes first"


def test_a_model_inside_an_installed_package_is_found(tmp_path, monkeypatch):
    package = tmp_path / "site" / "packaged_lm"
    saved(tiny_causal_lm(), package / "model")
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert resolve_model("package:packaged_lm/model") == str(package / "model")
    with pytest.raises(ModelError, match="has no model in 'elsewhere'"):
        resolve_model("package:packaged_lm/elsewhere")
    with pytest.raises(ModelError, match="no Python package 'not_there'"):
        resolve_model("package:not_there/model")


def test_a_hub_name_that_cannot_be_had_names_the_variable(tmp_path, monkeypatch):
    with pytest.raises(
        ModelError, match=r"no model 'no/such'.*ALIGNKIT_MODELS, which is not set.*HF_HUB_OFFLINE is set"
    ):
        load_causal_or_seq2seq("no/such")
    saved(tiny_causal_lm(), tmp_path / "shelf" / "small-lm")
    monkeypatch.setenv("ALIGNKIT_MODELS", str(tmp_path / "shelf"))
    for load in (load_causal_or_seq2seq, load_classifier, load_tokenizer):
        with pytest.raises(ModelError, match="did you mean 'small-lm'"):
            load("smal-lm")


@pytest.mark.parametrize("name", ["./runs", "runs/a/model", "/no/where", "~/no-such-folder-here"])
def test_what_can_only_be_a_path_is_not_asked_of_the_hub(name):
    with pytest.raises(ModelError, match=r"cannot be a hub id; check the path, or first run the recipe"):
        resolve_model(name)


def test_a_run_stands_for_the_model_that_it_saved(tmp_path, monkeypatch):
    run = tmp_path / "shelf" / "my-run"
    saved(tiny_causal_lm(), run / "checkpoint-2")
    (run / "recipe.yaml").write_text("trainer: ppo\n")
    with pytest.raises(
        ModelError, match=r"my-run' is the folder of a run that has not saved its model: no model/ with"
    ):
        resolve_model(run)
    saved(tiny_causal_lm(), run / "model")
    assert resolve_model(run) == str(run / "model")
    saved(tiny_causal_lm(), run)  # as the host does that uploads checkpoints
    assert resolve_model(run) == str(run / "model"), "not the copy from the midst of training"
    assert resolve_model(run / "checkpoint-2") == str(run / "checkpoint-2")
    monkeypatch.setenv("ALIGNKIT_MODELS", str(tmp_path / "shelf"))
    assert resolve_model("my-run") == str(run / "model")


@pytest.mark.parametrize(
    ("files", "holds"), [(["notes.txt", "weights.bin"], "has notes.txt, weights.bin"), ([], "is empty")]
)
def test_a_folder_that_is_neither_a_model_nor_a_run_says_what_was_looked_for(tmp_path, files, holds):
    (tmp_path / "odd").mkdir()
    for name in files:
        (tmp_path / "odd" / name).touch()
    with pytest.raises(ModelError) as refused:
        resolve_model(tmp_path / "odd")
    assert f"it {holds}, but no config.json or adapter_config.json" in str(refused.value)
    assert "no recipe.yaml with model/" in str(refused.value)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(ModelError, match="is a file"):
        resolve_model(tmp_path / "w.safetensors")


def test_an_empty_name_is_refused():
    with pytest.raises(ModelError, match="is empty"):
        resolve_model(" ")


def plain_tokenizer(vocabulary, **tokens):
    backend = tiny_tokenizer(vocabulary).backend_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


@pytest.mark.parametrize(
    ("words", "tokens", "pad"),
    [
        (["a", "<|pad|>"], {"eos_token": "<eos>", "unk_token": "<unk>"}, "<pad>"),
        (["a"], {"eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<eos>"}, "<eos>"),
    ],
)
def test_a_tokenizer_pads_with_a_token_that_it_has(words, tokens, pad, tmp_path):
    plain_tokenizer(words, **tokens).save_pretrained(tmp_path)
    tokenizer = load_tokenizer_from(tmp_path)
    assert tokenizer.pad_token == pad and tokenizer.padding_side == "left"
    assert len(tokenizer) == len(words) + 3, "no token was added"


def load_tokenizer_from(folder):
    saved(tiny_causal_lm(), folder, tokenizer=False)
    return load_tokenizer(folder)


def test_without_a_padding_token_the_unknown_one_serves_then_the_end(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    for name, tokens, pad in (("a", {"unk_token": "?"}, "?"), ("b", {}, "#")):
        backend = Tokenizer(models.WordLevel({"#": 0, "?": 1, "x": 2}, unk_token="?"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="#", **tokens).save_pretrained(tmp_path / name)
        assert load_tokenizer_from(tmp_path / name).pad_token == pad


def test_a_folder_without_tokenizer_is_named(tmp_path):
    folder = saved(tiny_classifier(), tmp_path / "m", tokenizer=False)
    with pytest.raises(ModelError, match=r"m' has no tokenizer"):
        load_classifier(folder)
