"""Classifiers trained as adapters, as rewards: with the head they were trained with, or not at all."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from alignkit import load_reward
from alignkit.errors import ModelError
from alignkit.models.loading import load_classifier
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer

IDS = torch.arange(2, 22).reshape(2, 10)


def saved(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["bert", "llama"])
def body(request, tmp_path):
    """The folder of a model that has no classifier's head."""
    return saved(tiny_classifier().bert if request.param == "bert" else tiny_causal_lm("llama"), tmp_path / "body")


def trained(body, names=("bad", "fair", "good"), **settings):
    """A step of training with LoRA on a new head, so that adapter and head are no longer those of a start."""
    model, _ = load_classifier(body, new_head=True, id2label=dict(enumerate(names)))
    model = get_peft_model(model, LoraConfig(**{"r": 4, "task_type": "SEQ_CLS", **settings}))
    torch.nn.functional.cross_entropy(model(input_ids=IDS).logits, torch.tensor([0, len(names) - 1])).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad.sign() + 0.5, alpha=0.1)
    return model.eval()


def test_a_classifier_of_an_adapter_comes_back_with_its_head(body, tmp_path):
    model = trained(body)
    model.save_pretrained(tmp_path / "adapter")  # no tokenizer: that of the body serves
    loaded, tokenizer = load_classifier(tmp_path / "adapter")
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert loaded.config.num_labels == 3 and tokenizer.padding_side == "right"
    assert not torch.equal(loaded(input_ids=IDS).logits, model.get_base_model()(input_ids=IDS * 0).logits)
    model.config.save_pretrained(tmp_path / "adapter")
    assert load_classifier(tmp_path / "adapter")[0].config.id2label == {0: "bad", 1: "fair", 2: "good"}


def test_a_decoder_type_body_learns_its_pad_token_from_the_tokenizer(tmp_path):
    decoder = tiny_causal_lm("llama")
    decoder.config.pad_token_id = None
    model = trained(saved(decoder, tmp_path / "body"))
    model.save_pretrained(tmp_path / "adapter")
    loaded, tokenizer = load_classifier(tmp_path / "adapter")
    assert loaded.config.pad_token_id == tokenizer.pad_token_id == 0
    batch = tokenizer(["a good film", "bad"], return_tensors="pt", padding=True)
    alone = loaded(**tokenizer(["bad"], return_tensors="pt")).logits
    torch.testing.assert_close(loaded(**batch).logits[1:], alone)


def test_it_serves_as_a_reward(body, tmp_path):
    model = trained(body, ("NEGATIVE", "POSITIVE"))
    saved(model, tmp_path / "adapter")
    model.config.save_pretrained(tmp_path / "adapter")
    texts = ["a good film", "a very dull story"]
    scores = load_reward("sentiment", model=str(tmp_path / "adapter"))(["the", "the"], texts)
    model.save_pretrained(tmp_path / "whole")
    whole = model.merge_and_unload()
    saved(whole, tmp_path / "merged")
    assert scores == pytest.approx(load_reward("sentiment", model=str(tmp_path / "merged"))(["the", "the"], texts))
    assert len(set(scores)) == 2


def test_an_adapter_whose_head_was_never_saved_is_refused(body, tmp_path):
    model, _ = load_classifier(body, new_head=True, num_labels=2)
    get_peft_model(model, LoraConfig(r=4)).save_pretrained(tmp_path / "adapter")  # no task: no head is saved
    with pytest.raises(ModelError, match=r"neither the adapter nor its base .* has (classifier|score).*random"):
        load_classifier(tmp_path / "adapter")


def test_an_adapter_whose_file_lost_its_head_is_refused(tmp_path):
    base = saved(tiny_classifier(), tmp_path / "classifier")  # whose own head would step in without a word
    trained(base, ("NEGATIVE", "POSITIVE")).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "classifier" not in name}, file)
    with pytest.raises(ModelError, match=r"lacks weights that its adapter_config\.json speaks of.*classifier"):
        load_classifier(tmp_path / "adapter")


def test_an_adapter_on_a_trained_classifier_may_leave_its_head_alone(tmp_path):
    base = saved(tiny_classifier(), tmp_path / "classifier")
    model = get_peft_model(load_classifier(base)[0], LoraConfig(r=4, init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded, _ = load_classifier(tmp_path / "adapter")
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert loaded.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}


def test_a_new_head_is_not_put_on_an_adapter(tmp_path):
    base = saved(tiny_classifier(), tmp_path / "classifier")
    trained(base, ("NEGATIVE", "POSITIVE")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="such as alignkit merge writes"):
        load_classifier(tmp_path / "adapter", new_head=True, num_labels=2)
