"""Networks that tell texts apart: against computations one text at a time, padded anywhere, saved and loaded."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from alignkit.errors import ModelError
from alignkit.models.discriminators import (
    build_discriminator,
    check_discriminator,
    discriminator_spec_problems,
    load_discriminator,
    set_dropout,
)
from alignkit.models.recurrent import LSTMConfig, LSTMForCausalLM, LSTMForTokenClassification
from alignkit.models.text_cnn import TextCNNConfig, TextCNNForSequenceClassification
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer

VOCABULARY = 23
TEXTS = [[5], [5, 9, 4], [7, 8, 9, 10, 11, 12, 13], [22, 3]]
SMALL = {"causal": {"hidden_size": 16, "heads": 2}, "bidirectional": {"hidden_size": 16}, "cnn": {"filters": 4}}


def cnn(**settings) -> TextCNNForSequenceClassification:
    torch.manual_seed(0)
    config = TextCNNConfig(vocab_size=VOCABULARY, embedding_size=6, filters=5, num_labels=1, **settings)
    return TextCNNForSequenceClassification(config).double().eval()


def lstm() -> LSTMForTokenClassification:
    torch.manual_seed(0)
    config = LSTMConfig(vocab_size=VOCABULARY, embedding_size=6, hidden_size=8, num_hidden_layers=2, num_labels=1)
    return LSTMForTokenClassification(config).double().eval()


def padded(side: str, width: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.full((len(TEXTS), width), 3), torch.zeros(len(TEXTS), width, dtype=torch.long)
    for row, text in enumerate(TEXTS):
        at = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, at], mask[row, at] = torch.tensor(text), 1
    return ids, mask


def kim(model, text: list[int], types: list[int]) -> torch.Tensor:
    """The logit of one text, a window at a time: Kim (2014), then y = t * g(W x) + (1 - t) * x."""
    words = [model.embedding.weight[word] + model.types.weight[kind] for word, kind in zip(text, types, strict=True)]
    found = []
    for convolution in model.convolutions:
        width = convolution.kernel_size[0]
        filled = words + [torch.zeros_like(words[0])] * max(width - len(words), 0)
        windows = [torch.stack(filled[i : i + width], 1) for i in range(len(filled) - width + 1)]
        answers = [F.relu((convolution.weight * window).sum((1, 2)) + convolution.bias) for window in windows]
        found.append(torch.stack(answers).max(0).values)
    x = torch.cat(found)
    t = torch.sigmoid(model.gate.weight @ x + model.gate.bias)
    y = t * F.relu(model.transform.weight @ x + model.transform.bias) + (1 - t) * x
    return model.classifier.weight @ y + model.classifier.bias


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_text_cnn_is_kims_with_a_highway_layer_wherever_the_padding_is(side):
    model = cnn(widths=[1, 2, 4])
    ids, mask = padded(side)
    types = ids % 2
    found = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    expected = torch.stack([kim(model, text, [word % 2 for word in text]) for text in TEXTS])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_text_without_a_token_and_filters_wider_than_the_batch_are_read():
    model = cnn(widths=[1, 12])
    ids, mask = padded("right")
    empty = model(input_ids=ids[:1], attention_mask=mask[:1] * 0).logits
    short = model(input_ids=torch.tensor([TEXTS[0]])).logits
    assert torch.isfinite(empty).all()
    torch.testing.assert_close(short, model(input_ids=ids[:1], attention_mask=mask[:1]).logits)
    assert (empty - short).abs().max() > 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_lstm_labels_a_token_by_what_stands_before_it(side):
    model = lstm()
    ids, mask = padded(side)
    found = model(input_ids=ids, attention_mask=mask).logits
    for row, text in enumerate(TEXTS):
        state, labels = None, []
        for word in text:  # a token at a time, with the state that the output carries
            out = model(input_ids=torch.tensor([[word]]), past_key_values=state, use_cache=True)
            state = out.past_key_values
            labels.append(out.logits[0, 0])
        torch.testing.assert_close(found[row][mask[row].bool()], torch.stack(labels))


def test_the_models_are_saved_and_loaded_by_the_auto_classes(tmp_path):
    ids, mask = padded("right")
    for name, model, family in (
        ("cnn", cnn(), AutoModelForSequenceClassification),
        ("lstm", lstm(), AutoModelForTokenClassification),
    ):
        model.save_pretrained(tmp_path / name)
        loaded = family.from_pretrained(tmp_path / name, dtype=torch.float64).eval()
        assert type(loaded) is type(model)
        torch.testing.assert_close(loaded(ids, mask).logits, model(ids, mask).logits, rtol=1e-12, atol=1e-12)


def test_labels_give_a_loss():
    ids, mask = padded("right")
    torch.manual_seed(0)
    two = TextCNNForSequenceClassification(TextCNNConfig(vocab_size=VOCABULARY, num_labels=2)).eval()
    labels = torch.tensor([0, 1, 1, 0])
    out = two(ids, mask, labels=labels)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels))
    tagger = LSTMForTokenClassification(LSTMConfig(vocab_size=VOCABULARY, num_labels=2)).eval()
    wanted = torch.where(mask.bool(), ids % 2, -100)
    out = tagger(ids, mask, labels=wanted)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[mask.bool()], wanted[mask.bool()]))


# Built and loaded


@pytest.mark.parametrize("kind", SMALL)
def test_a_new_one_has_one_output_and_is_seeded(kind):
    tokenizer = tiny_tokenizer()
    first, same, other = (build_discriminator({**SMALL[kind], "seed": seed}, kind, tokenizer) for seed in (1, 1, 2))
    check_discriminator(first, kind)
    weights, again, else_ = (torch.cat([w.flatten() for w in m.parameters()]) for m in (first, same, other))
    assert torch.equal(weights, again) and not torch.equal(weights, else_)
    assert first.config.vocab_size == len(tokenizer) and first.config.id2label == {0: "person"}


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("causal", {"vocab_size": 300}, "that of its tokenizer"),
        ("causal", {"hidden_size": 9}, "no multiple of heads"),
        ("bidirectional", {"architecture": "gpt2"}, "architecture"),
        ("cnn", {"widths": []}, "widths"),
        ("cnn", {"filters": 0}, "filters must be at least 1"),
        ("cnn", {"filter": 3}, "filter"),
        ("cnn", {"dropout": 1.0}, r"\[0, 1\)"),
    ],
)
def test_a_wrong_specification_is_refused_with_words(kind, spec, words):
    assert discriminator_spec_problems(SMALL[kind], kind) == []
    with pytest.raises(ModelError, match=words):
        build_discriminator(spec, kind, tiny_tokenizer())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "lstm"])
def test_an_end_token_that_is_the_padding_too_learns(architecture):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = build_discriminator({"architecture": architecture, "hidden_size": 16, "heads": 2}, "causal", tokenizer)
    model(input_ids=torch.tensor([[5, tokenizer.eos_token_id]])).logits.sum().backward()
    embeddings = model.get_input_embeddings().weight
    assert embeddings[tokenizer.eos_token_id].abs().max() > 0
    assert embeddings.grad[tokenizer.eos_token_id].abs().max() > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "lstm"])
def test_a_language_model_is_the_backbone_of_a_causal_one(kind, tmp_path):
    language_model = (
        LSTMForCausalLM(LSTMConfig(vocab_size=len(tiny_tokenizer()))) if kind == "lstm" else tiny_causal_lm(kind)
    )
    language_model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_discriminator(str(tmp_path), "causal", trained=False, seed=3)
    again, _ = load_discriminator(str(tmp_path), "causal", trained=False, seed=3)
    ids = torch.tensor([[5, 6, 7]])
    assert tokenizer.padding_side == "right"
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    states = language_model.eval().base_model(input_ids=ids)[0]
    torch.testing.assert_close(model.base_model(input_ids=ids)[0], states)
    with pytest.raises(ModelError, match="no trained classifier"):
        load_discriminator(str(tmp_path), "causal", trained=True)


def test_what_a_kind_cannot_be_is_refused(tmp_path):
    bert = tiny_classifier(num_labels=1)
    check_discriminator(bert, "bidirectional")
    with pytest.raises(ModelError, match="has 2"):
        check_discriminator(tiny_classifier(), "bidirectional")
    with pytest.raises(ModelError, match="takes a token classifier"):
        check_discriminator(bert, "causal")
    with pytest.raises(ModelError, match="takes a sequence classifier"):
        check_discriminator(build_discriminator(SMALL["causal"], "causal", tiny_tokenizer()), "bidirectional")
    bert.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="from both sides"):
        load_discriminator(str(tmp_path), "causal", trained=False)


DROPPING = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "llama": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "attention_dropout": 0.3,
    },
    "bart": {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "dropout": 0.3,
        "activation_dropout": 0.3, "attention_dropout": 0.3,
    },
    "falcon": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_dropout": 0.3,
        "attention_dropout": 0.3,
    },
    "persimmon": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "hidden_dropout": 0.3, "attention_dropout": 0.3,
    },
    "starcoder2": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 16, "residual_dropout": 0.3, "embedding_dropout": 0.3, "attention_dropout": 0.3,
    },
    "gpt_bigcode": {
        "n_embd": 16, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3,
    },
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2, "hidden_dropout": 0.3, "attention_dropout": 0.3},
}  # fmt: skip


@pytest.mark.parametrize("family", DROPPING)
def test_one_rate_for_all_dropout_of_a_network(family):
    ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, **ends, **DROPPING[family])
    network = AutoModel.from_config(config).train()
    rates = {name: value for name, value in vars(network.config).items() if "drop" in name}
    ids = torch.tensor([[5, 9, 4, 7]])

    def twice() -> list[torch.Tensor]:
        return [network(input_ids=ids).last_hidden_state for _ in range(2)]

    first, second = twice()
    assert not torch.equal(first, second)
    set_dropout(network, 0.0)
    first, second = twice()
    assert torch.equal(first, second)
    set_dropout(network, 0.5)
    first, second = twice()
    assert not torch.equal(first, second)
    assert {name: value for name, value in vars(network.config).items() if "drop" in name} == rates
