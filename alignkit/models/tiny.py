"""Tiny random models for tests: every kind of generator in milliseconds, with nothing to download.

The weights are random but seeded, so two calls give equal models. The tokenizer is word-level: what a test writes is
what the model reads.
"""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from alignkit.errors import ModelError

WORDS = [
    *("a", "and", "awful", "bad", "boring", "brilliant", "but", "dull", "fine", "film", "good", "great", "hated"),
    *("i", "is", "it", "loved", "movie", "not", "of", "plot", "poor", "story", "superb", "terrible", "the", "this"),
    *("very", "was", "wonderful", ",", ".", "!", "?"),
]

CAUSAL_KINDS = ("gpt2", "llama", "qwen2", "qwen3")


SEQ2SEQ_KINDS = ("t5", "bart")
_BART_LAYERS = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}


def tiny_tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with `<pad>`, `<eos>` and `<unk>`, padding on the left."""
    vocabulary = ["<pad>", "<eos>", "<unk>", *(words or WORDS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    return fast


def tiny_causal_lm(
    kind: str = "gpt2", vocab_size: int = len(WORDS) + 3, hidden_size: int = 32, layers: int = 2, seed: int = 0
) -> PreTrainedModel:
    """A random causal LM of the given kind (`gpt2`, `llama`, `qwen2`, `qwen3`), dropout off, eos 1, pad 0.

    Raises:
        ModelError: an unknown kind.
    """
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    rotary = dict(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        **tokens,
    )
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=vocab_size,
            n_embd=hidden_size,
            n_layer=layers,
            n_head=4,
            n_positions=128,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            **tokens,
        )
    elif kind == "llama":
        config = LlamaConfig(**rotary)
    elif kind == "qwen2":
        config = Qwen2Config(**rotary)
    elif kind == "qwen3":
        config = Qwen3Config(head_dim=hidden_size // 4, **rotary)
    else:
        raise ModelError(f"unknown kind {kind!r}; expected one of {', '.join(CAUSAL_KINDS)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def tiny_seq2seq(
    kind: str = "t5", vocab_size: int = len(WORDS) + 3, hidden_size: int = 32, seed: int = 0
) -> PreTrainedModel:
    """A random encoder-decoder of the given kind (`t5`, `bart`), dropout off, eos 1, pad and decoder start 0.

    Raises:
        ModelError: an unknown kind.
    """
    tokens = {"vocab_size": vocab_size, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    if kind == "t5":
        config: Any = T5Config(
            d_model=hidden_size, d_kv=8, d_ff=2 * hidden_size, num_layers=2, num_heads=4, dropout_rate=0.0, **tokens
        )
    elif kind == "bart":
        layers = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _BART_LAYERS.items()}
        config = BartConfig(
            d_model=hidden_size, max_position_embeddings=64, dropout=0.0, bos_token_id=None, forced_eos_token_id=None,
            **layers, **tokens,
        )  # fmt: skip
    else:
        raise ModelError(f"no tiny encoder-decoder of kind {kind!r}; known: {', '.join(SEQ2SEQ_KINDS)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForSeq2SeqLM.from_config(config).eval()


def tiny_classifier(vocab_size: int = len(WORDS) + 3, num_labels: int = 2, seed: int = 0) -> PreTrainedModel:
    """A random BERT-type sequence classifier with labels NEGATIVE and POSITIVE when there are two."""
    names = ["NEGATIVE", "POSITIVE"] if num_labels == 2 else [f"LABEL_{i}" for i in range(num_labels)]
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        num_labels=num_labels,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config).eval()
