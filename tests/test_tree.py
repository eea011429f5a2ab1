"""A tree of tokens is read as whole texts are: every output against full recomputation, in double precision."""

import logging

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForTokenClassification,
    MistralConfig,
)

from alignkit.errors import ModelError
from alignkit.models.recurrent import (
    GRUSeq2SeqConfig,
    GRUSeq2SeqForConditionalGeneration,
    LSTMConfig,
    LSTMForCausalLM,
)
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq
from alignkit.models.tree import Nodes, TreeReader
from alignkit.models.tree.keys import KeysAndValues
from alignkit.models.tree.others import States, WholePaths

VOCABULARY = 35
PROMPTS = [[4, 9, 7, 12, 5], [6, 3], [11, 8, 20, 2], [6, 3]]


def token_classifier():
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=1, pad_token_id=0,
        initializer_range=0.2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, classifier_dropout=0.0,
    )  # fmt: skip
    return GPT2ForTokenClassification(config)


def gru():
    torch.manual_seed(0)
    return GRUSeq2SeqForConditionalGeneration(GRUSeq2SeqConfig(vocab_size=VOCABULARY, hidden_size=16))


def lstm():
    torch.manual_seed(0)
    return LSTMForCausalLM(LSTMConfig(vocab_size=VOCABULARY, hidden_size=16, embedding_size=16, num_hidden_layers=2))


def windowed():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4, pad_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
    )
    return BertForTokenClassification(config)


KINDS = {
    "gpt2": (lambda: tiny_causal_lm("gpt2"), KeysAndValues),
    "llama": (lambda: tiny_causal_lm("llama"), KeysAndValues),
    "t5": (lambda: tiny_seq2seq("t5"), KeysAndValues),
    "bart": (lambda: tiny_seq2seq("bart"), KeysAndValues),
    "token classifier": (token_classifier, KeysAndValues),
    "gru": (gru, States),
    "lstm": (lstm, States),
    "windowed": (windowed, WholePaths),
    "bidirectional": (bert, WholePaths),
}


def made(kind):
    """In double precision, with weights so large that every token of a text matters."""
    model = KINDS[kind][0]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4 if kind in ("gpt2", "llama", "bart", "windowed", "bidirectional") else 1)
    return model


def padded(prompts=PROMPTS):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def whole(model, prompt, tokens):
    """The output at the last token of one text, read alone and without padding."""
    ids = torch.tensor([prompt])
    if model.config.is_encoder_decoder:
        begin = torch.tensor([[model.config.decoder_start_token_id, *tokens]])
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=begin).logits[0, -1]
    return model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_node_is_read_as_its_whole_text_is(kind):
    model = made(kind)
    generator = np.random.default_rng(1)
    reader = TreeReader.of(model, *padded())
    assert isinstance(reader.memory, KINDS[kind][1])
    texts = {node: (node, []) for node in range(len(PROMPTS))}
    for node in texts:
        torch.testing.assert_close(reader.outputs[node], whole(model, PROMPTS[node], []), atol=1e-10, rtol=1e-10)
    kept = list(texts)
    for turn in range(8):
        size = [4, 7, 1, 4, 4, 9, 2, 4][turn]
        parents = generator.choice(kept, size=size).tolist() if turn not in (3, 4) else kept[:4]
        tokens = generator.integers(1, VOCABULARY, size=size).tolist()
        out = reader.extend(parents, tokens)
        for parent, token, got in zip(parents, tokens, out, strict=True):
            row, text = texts[parent]
            node = len(texts)
            texts[node] = (row, [*text, token])
            kept.append(node)
            torch.testing.assert_close(got, whole(model, PROMPTS[row], texts[node][1]), atol=1e-10, rtol=1e-10)
        if turn in (2, 5):  # some nodes are forgotten, their ancestors too: what stands behind the others stays right
            kept = generator.choice(kept, size=5, replace=False).tolist()
            reader.keep(kept)
    assert len({len(text) for _, text in texts.values()}) > 3, "all of one depth"
    assert reader.nodes.tokens_of(kept) == [texts[node][1] for node in kept]


@pytest.mark.parametrize("kind", ["gpt2", "t5", "lstm"])
def test_rows_are_read_in_parts_when_there_are_many(kind):
    model = made(kind)
    together, apart = (TreeReader.of(model, *padded(), rows=rows) for rows in (256, 3))
    for parents, tokens in (([0, 1, 1, 2, 3, 3, 0], [5, 6, 7, 8, 9, 10, 11]), ([4, 10, 7, 5], [3, 3, 4, 4])):
        one, other = (reader.extend(parents, tokens) for reader in (together, apart))
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", ["gpt2", "bart", "gru"])
def test_slots_come_back_into_use_and_memory_is_bounded(kind):
    model = made(kind)
    reader = TreeReader.of(model, *padded(), limit=40)
    parents = list(range(len(PROMPTS)))
    sizes = []
    for turn in range(25):
        siblings = [parent for parent in parents for _ in range(2)]
        reader.extend(siblings, [3 + turn % 5, 4] * 4)
        newest = range(reader.nodes.made - 8, reader.nodes.made, 2)
        parents = list(newest) if turn % 6 else [0, 1, 2, 3]
        reader.keep([0, 1, 2, 3, *parents] if turn % 6 else parents)
        sizes.append(reader.bytes)
    assert reader.nodes.capacity <= 40 and reader.nodes.made > 200
    assert sizes[-1] == sizes[12], "memory grows although no more is kept"
    with pytest.raises(ModelError, match="but limit=40"):
        for _ in range(12):
            reader.extend([parents[-1]] * 4, [5] * 4)


def test_the_bytes_of_a_token_are_known():
    model = tiny_causal_lm("gpt2")
    reader = TreeReader.of(model, *padded())
    assert reader.bytes_per_token == model.config.n_layer * 2 * model.config.n_embd * 4
    assert reader.bytes == reader.bytes_per_token * (reader.nodes.capacity + 3 * 5)  # three different prompts
    assert isinstance(reader.nodes, Nodes)


def test_prompts_are_not_copied_again_when_the_same_rows_come_back(monkeypatch):
    model = tiny_causal_lm("gpt2")
    reader = TreeReader.of(model, *padded())
    copied = []
    layer = reader.memory.cache.layers[0]
    arrange = layer.arrange
    monkeypatch.setattr(layer, "arrange", lambda *args: (copied.append(not args[2]), arrange(*args)))
    reader.extend([0, 1, 2, 3], [5, 5, 5, 5])
    reader.extend([4, 5, 2, 7], [5, 6, 7, 8])
    reader.extend([4, 5], [9, 9])
    reader.extend([5, 4], [9, 9])
    assert copied == [True, False, False, True]


def test_a_model_whose_cache_is_not_known_says_so_once(caplog):
    model = windowed().eval()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            TreeReader.of(model, *padded())
    assert sum("read as a whole" in record.message for record in caplog.records) == 1


def test_a_model_is_tried_by_the_precision_of_what_is_computed(caplog):
    """BART adds a bias in single precision to outputs that were computed in half of it."""
    model = tiny_seq2seq("bart").eval()
    with caplog.at_level(logging.WARNING), torch.autocast("cpu", torch.bfloat16):
        reader = TreeReader.of(model, *padded())
        assert reader.outputs.dtype == torch.float32
    assert isinstance(reader.memory, KeysAndValues) and not caplog.records
    assert isinstance(TreeReader.of(model, *padded()).memory, KeysAndValues)


def test_a_model_that_reads_otherwise_behind_gaps_is_found_out(monkeypatch):
    """GPT-2 made to count places by the cache's length, as a model does that takes no position ids."""
    model = tiny_causal_lm("gpt2")
    forward = type(model.transformer).forward

    def counting(self, *args, position_ids=None, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.transformer), "forward", counting)
    assert isinstance(TreeReader.of(model, *padded()).memory, WholePaths)


def test_what_cannot_work_is_refused():
    reader = TreeReader.of(tiny_causal_lm("gpt2"), *padded())
    reader.extend([0, 1], [3, 4])
    reader.keep([4])
    with pytest.raises(ModelError, match=r"nodes \[5, 0\] were forgotten by keep\(\)"):
        reader.extend([4, 5, 0], [3, 3, 3])
    with pytest.raises(ModelError, match="nodes 0 to 5, got"):
        reader.extend([6], [3])
    with pytest.raises(ModelError, match="a token for each of one or more parents, got 1 and 2"):
        reader.extend([4], [3, 3])
    with pytest.raises(ModelError, match="give input_ids"):
        TreeReader.of(tiny_causal_lm("gpt2"), None)
