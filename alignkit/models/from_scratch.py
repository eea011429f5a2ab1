"""New small models with a tokenizer trained on the texts at hand, for runs that start from nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, get_type_hints

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from alignkit.errors import ModelError
from alignkit.models.loading import head_labels
from alignkit.models.new_tokenizer import train_tokenizer, train_word_tokenizer
from alignkit.models.recurrent import GRUSeq2SeqConfig, LSTMConfig
from alignkit.settings import argument_problems

_BYTES = 256


@dataclass(frozen=True)
class CausalSpec:
    """The size of a new causal LM.

    Attributes:
        architecture: "gpt2" (learned positions), "llama" (rotary positions) or "lstm" (recurrent).
        hidden_size: width of the states; a multiple of `heads`.
        layers: number of blocks.
        heads: attention heads of a block; an LSTM has none.
        context: longest sequence, in tokens.
        vocab_size: at most so many tokens; few texts may give fewer. Of "bpe", 256 of them are the bytes.
        tokenizer: "bpe", which writes any text, or "words": the words between spaces, which writes those of the texts
            and no others.
        dropout: 0 suits a policy: what it sampled without dropout is then scored alike.
        seed: of the weights.
    """

    architecture: Literal["gpt2", "llama", "lstm"] = "llama"
    hidden_size: int = 128
    layers: int = 2
    heads: int = 8
    context: int = 128
    vocab_size: int = 1024
    tokenizer: Literal["bpe", "words"] = "bpe"
    dropout: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Seq2SeqSpec:
    """The size of a new encoder-decoder.

    Attributes:
        architecture: "gru": a bidirectional GRU encoder, a GRU decoder with attention, tied weights.
        hidden_size: width of embeddings and states.
        layers: of the encoder and of the decoder.
        context: longest prompt and longest reply, in tokens.
        vocab_size: at most so many tokens; few texts may give fewer. 256 of them are the bytes.
        dropout: 0 suits a policy: what it sampled without dropout is then scored alike.
        emotions: with an emotion head on the encoder (MultiSeq), whose classes are the data's emotions.
        seed: of the weights.
    """

    architecture: Literal["gru"] = "gru"
    hidden_size: int = 300
    layers: int = 1
    context: int = 128
    vocab_size: int = 8192
    dropout: float = 0.0
    emotions: bool = False
    seed: int = 0


@dataclass(frozen=True)
class ClassifierSpec:
    """The size of a new sequence classifier of BERT type.

    Attributes:
        hidden_size: width of the states; a multiple of `heads`.
        layers: number of blocks.
        heads: attention heads of a block.
        context: longest sequence, in tokens.
        vocab_size: at most so many tokens; few texts may give fewer. 256 of them are the bytes.
        dropout: in training, everywhere in the network.
        seed: of the weights.
    """

    hidden_size: int = 64
    layers: int = 1
    heads: int = 4
    context: int = 128
    vocab_size: int = 1024
    dropout: float = 0.1
    seed: int = 0


Kind = Literal["causal", "seq2seq", "classifier"]
_SPECS: dict[str, tuple[Any, str]] = {
    "causal": (CausalSpec, "a new causal LM"),
    "seq2seq": (Seq2SeqSpec, "a new encoder-decoder"),
    "classifier": (ClassifierSpec, "a new classifier"),
}


def generator_kind(spec: Mapping[str, Any]) -> Kind:
    """Which kind of generator a specification means, by its architecture."""
    return "seq2seq" if spec.get("architecture") == "gru" else "causal"


def spec_problems(spec: Mapping[str, Any], kind: Kind) -> list[str]:
    """What is wrong with the specification of a new model, one sentence each; builds nothing."""
    wanted, owner = _SPECS[kind]
    problems = argument_problems(owner, spec, signature(wanted).parameters, hints=get_type_hints(wanted))
    if problems:
        return problems
    built = wanted(**spec)
    for name in ("hidden_size", "layers", "heads"):
        if getattr(built, name, 1) < 1:
            problems.append(f"{owner}: {name} must be at least 1, got {getattr(built, name)}")
    heads = 1 if getattr(built, "architecture", "") in ("lstm", "gru") else built.heads
    if heads >= 1 and built.hidden_size % heads:
        problems.append(f"{owner}: hidden_size {built.hidden_size} is no multiple of heads {heads}")
    elif isinstance(built, CausalSpec) and built.architecture == "llama" and built.hidden_size // heads % 2:
        problems.append(f"{owner}: rotary positions need an even hidden_size / heads")
    if built.context < 2:
        problems.append(f"{owner}: context must be at least 2 tokens, got {built.context}")
    if getattr(built, "tokenizer", "bpe") == "words":
        if built.vocab_size < 4:
            problems.append(f"{owner}: vocab_size must be at least 4, a word and three marks, got {built.vocab_size}")
    elif built.vocab_size < _BYTES + 3:
        problems.append(f"{owner}: vocab_size must be at least {_BYTES + 3}, bytes and marks, got {built.vocab_size}")
    if not 0 <= built.dropout < 1:
        problems.append(f"{owner}: dropout must lie in [0, 1), got {built.dropout}")
    return problems


def build_causal_lm(spec: Mapping[str, Any], texts: Iterable[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A causal LM with random weights, and a tokenizer trained on the texts.

    Args:
        spec: fields of `CausalSpec`; what is left out has its default.
        texts: what the tokenizer is trained on.

    Raises:
        ModelError: a wrong specification, or no texts.
    """
    built = CausalSpec(**_accepted(spec, "causal"))
    train = train_word_tokenizer if built.tokenizer == "words" else train_tokenizer
    tokenizer = train(texts, built.vocab_size, built.context)
    return _seeded(AutoModelForCausalLM, causal_config(built, tokenizer), built.seed), tokenizer


def causal_config(built: CausalSpec, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration of a network of this size that reads the tokenizer's tokens from left to right."""
    tokens = _special_tokens(tokenizer)
    if built.architecture == "lstm":
        return LSTMConfig(
            vocab_size=len(tokenizer),
            embedding_size=built.hidden_size,
            hidden_size=built.hidden_size,
            num_hidden_layers=built.layers,
            dropout=built.dropout,
            tie_word_embeddings=True,
            **tokens,
        )
    if built.architecture == "gpt2":
        return GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=built.hidden_size,
            n_layer=built.layers,
            n_head=built.heads,
            n_positions=built.context,
            attn_pdrop=built.dropout,
            embd_pdrop=built.dropout,
            resid_pdrop=built.dropout,
            **tokens,
        )
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=built.hidden_size,
        intermediate_size=4 * built.hidden_size,
        num_hidden_layers=built.layers,
        num_attention_heads=built.heads,
        num_key_value_heads=built.heads,
        max_position_embeddings=built.context,
        attention_dropout=built.dropout,
        tie_word_embeddings=True,
        **tokens,
    )


def build_seq2seq(
    spec: Mapping[str, Any], texts: Iterable[str], emotions: Sequence[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """An encoder-decoder with random weights, and a tokenizer trained on the texts.

    Args:
        spec: fields of `Seq2SeqSpec`; what is left out has its default.
        texts: what the tokenizer is trained on.
        emotions: words for the classes of the emotion head, where `spec` asks for one.

    Raises:
        ModelError: a wrong specification, no texts, or no emotions where there shall be a head for them.
    """
    built = Seq2SeqSpec(**_accepted(spec, "seq2seq"))
    if built.emotions and not emotions:
        raise ModelError("emotions: true needs data with a column `emotion` that is not empty everywhere")
    tokenizer = train_tokenizer(texts, built.vocab_size, built.context)
    config = GRUSeq2SeqConfig(
        vocab_size=len(tokenizer),
        hidden_size=built.hidden_size,
        num_hidden_layers=built.layers,
        dropout=built.dropout,
        emotions=list(emotions) if built.emotions else [],
        decoder_start_token_id=tokenizer.bos_token_id,
        **_special_tokens(tokenizer),
    )
    return _seeded(AutoModelForSeq2SeqLM, config, built.seed), tokenizer


def build_classifier(
    spec: Mapping[str, Any], texts: Iterable[str], id2label: Mapping[int, str] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A sequence classifier of BERT type with random weights, and a tokenizer trained on the texts.

    Args:
        spec: fields of `ClassifierSpec`; what is left out has its default.
        texts: what the tokenizer is trained on.
        id2label: names of the classes; negative (0) and positive (1) if not given.

    Raises:
        ModelError: a wrong specification, or no texts.
    """
    built = ClassifierSpec(**_accepted(spec, "classifier"))
    labels = head_labels(id2label or {0: "negative", 1: "positive"})
    tokenizer = train_tokenizer(texts, built.vocab_size, built.context, for_classifier=True)
    return _seeded(AutoModelForSequenceClassification, bert_config(built, tokenizer, labels), built.seed), tokenizer


def bert_config(built: ClassifierSpec, tokenizer: PreTrainedTokenizerBase, labels: Mapping[int, str]) -> BertConfig:
    """The configuration of a classifier of this size for the tokenizer's tokens."""
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=built.hidden_size,
        num_hidden_layers=built.layers,
        num_attention_heads=built.heads,
        intermediate_size=4 * built.hidden_size,
        max_position_embeddings=built.context,
        hidden_dropout_prob=built.dropout,
        attention_probs_dropout_prob=built.dropout,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=len(labels),
        id2label=dict(labels),
        label2id={label: i for i, label in labels.items()},
    )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}


def _accepted(spec: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    problems = spec_problems(spec, kind)
    if problems:
        raise ModelError("; ".join(problems))
    return dict(spec)


def _seeded(family: Any, config: PretrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return family.from_config(config).eval()
