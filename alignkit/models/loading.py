"""Models and tokenizers from a folder or the hub, refused when they are not what was asked for.

`transformers` loads a checkpoint whose head is missing, fills it with random numbers and writes a warning. A reward or
a policy must not start like that, so everything here reads the loading report and raises `ModelError` instead.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

import alignkit.models.recurrent  # (the auto classes know them then)
import alignkit.models.text_cnn  # noqa: F401
from alignkit.errors import ModelError
from alignkit.models.adapters import (
    Prepare,
    adapter_settings,
    holds_adapter,
    keep_trainable,
    load_adapter,
    require_bitsandbytes,
    saved_quantization,
    saved_shapes,
)
from alignkit.models.locating import explained, resolve_model
from alignkit.models.pooled_classifier import POOLINGS, PooledClassifier, PooledClassifierConfig
from alignkit.models.precision import named_dtype

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
# What gives a sequence classifier's scores; its first dimension counts the classes.
_OUTPUTS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
_VOCABULARY = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")


def load_tokenizer(
    name: str | os.PathLike, *, padding_side: str | None = "left", trust_remote_code: bool = False, **kwargs: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, ready to pad.

    Args:
        name: see `resolve_model`.
        padding_side: "left" (what sampling needs), "right", or None for what the tokenizer says itself.
        trust_remote_code: run Python code that the checkpoint brings along.
        kwargs: for `AutoTokenizer.from_pretrained`.

    A tokenizer without a pad token gets one that it already knows, so that no embedding has to grow: a token named like
    padding, else the unknown token, else the end token.
    """
    folder = resolve_model(name)
    if Path(folder).is_dir() and not any(any(Path(folder).glob(pattern)) for pattern in _VOCABULARY):
        # transformers makes an empty tokenizer out of some model types instead of complaining.
        raise ModelError(
            f"the model folder {folder!r} has no tokenizer (no tokenizer.json, vocabulary or *.model); "
            "save the tokenizer there too (tokenizer.save_pretrained)"
        )
    with explained(name, folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, **kwargs)
    if padding_side is not None:
        tokenizer.padding_side = padding_side
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        named = [token for token in ("<pad>", "<|pad|>", "[PAD]", "<PAD>") if token in vocabulary]
        tokenizer.pad_token = next(
            (token for token in [*named, tokenizer.unk_token, tokenizer.eos_token] if token), None
        )
        if tokenizer.pad_token is None:
            raise ModelError(
                f"the tokenizer of {str(name)!r} has no pad, unknown or end token; "
                "add one (tokenizer.add_special_tokens) and save it with the model"
            )
    return tokenizer


def load_causal_or_seq2seq(
    name: str | os.PathLike,
    *,
    trust_remote_code: bool = False,
    dtype: str | torch.dtype | None = None,
    before_adapter: Prepare | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """A pretrained generator: a causal LM or an encoder-decoder, whichever the configuration says, in eval mode.

    A folder with an adapter (`adapter_config.json`) loads its base model, quantised as it was while the adapter
    learned, and gives the `PeftModel` on top of it.

    Args:
        name: see `resolve_model`.
        trust_remote_code: run Python code that the checkpoint brings along.
        dtype: of the weights; "auto" takes the checkpoint's own. The default is TRL's, float32, and that of its
            training for the quantised base of an adapter.
        before_adapter: called with the base of an adapter, before the adapter is loaded on it.
        kwargs: for `from_pretrained`, such as `quantization_config` or `device_map`.

    Raises:
        ModelError: no such model, no weights, weights missing, or a model that does not write text.
    """
    folder = resolve_model(name)
    kwargs.update(trust_remote_code=trust_remote_code)
    if holds_adapter(folder):
        return _with_adapter(name, folder, {**kwargs, "dtype": dtype}, before_adapter)
    kwargs["dtype"] = _precision(dtype)
    if kwargs.get("quantization_config") is not None:
        require_bitsandbytes("a quantised model")
    config = _checked_config(name, folder, trust_remote_code, kwargs.get("revision"))
    made_as = (config.architectures or [""])[0]
    if config.is_encoder_decoder and not made_as.endswith("ForSequenceClassification"):
        family: Any = AutoModelForSeq2SeqLM
    elif made_as.endswith(("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")):
        raise ModelError(f"{str(name)!r} is a {made_as}, which writes no text; give a causal LM or an encoder-decoder")
    elif _is_encoder(config):
        raise ModelError(
            f"{str(name)!r} is an encoder of type {config.model_type}, which writes no text; "
            "give a causal LM (GPT, Llama, Qwen ...) or an encoder-decoder (T5, BART ...)"
        )
    else:
        family = AutoModelForCausalLM
    model, report = _load(name, folder, family, kwargs)
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if missing:
        raise ModelError(
            f"the checkpoint {str(name)!r} ({made_as or config.model_type}) lacks weights of {type(model).__name__}, "
            f"or has them in another size: {_some(missing)}; they would be random numbers. "
            "Give a checkpoint that was saved from a language model"
        )
    keep_trainable(model)
    return model.eval()


def load_classifier(
    name: str | os.PathLike,
    *,
    of_tokens: bool = False,
    new_head: bool = False,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    pooling: str | None = None,
    trust_remote_code: bool = False,
    dtype: str | torch.dtype = "float32",
    **kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classifier of sequences or of tokens in eval mode, and its tokenizer, padding on the right.

    Args:
        name: see `resolve_model`.
        of_tokens: one that gives every token a label, not the whole text.
        new_head: allow a freshly initialised head, to *train* a classifier from an encoder. Its size is `num_labels`,
            or that of `id2label`; a head of that size in the checkpoint is kept. The body must be complete.
        num_labels: number of classes, only with `new_head`.
        id2label: names of the classes, only with `new_head`.
        pooling: only with `new_head`: `mean` makes a `PooledClassifier`, which reads the mean of the encoder's states;
            by default the head is the one that transformers has for the model.
        trust_remote_code: run Python code that the checkpoint brings along.
        dtype: of the weights; "auto" takes the checkpoint's own.
        kwargs: for `from_pretrained`.

    Raises:
        ModelError: no such model, no weights, or a head that is not in the checkpoint while `new_head` is false.
    """
    if not new_head and not (num_labels is None and id2label is None and pooling is None):
        raise ModelError("num_labels, id2label and pooling describe a new head; add new_head=True, or leave them out")
    if pooling not in (None, *POOLINGS):
        raise ModelError(f"pooling is one of {', '.join(POOLINGS)}, or left out; got {pooling!r}")
    labels = head_labels(id2label, num_labels) if new_head else {}
    folder = resolve_model(name)
    kwargs.update(trust_remote_code=trust_remote_code, dtype=_precision(dtype))
    if holds_adapter(folder):
        if new_head or of_tokens:
            raise ModelError(
                f"{str(name)!r} is an adapter, whose head is the one it was trained with; for a new head, or labels of "
                "tokens, give a whole model, such as alignkit merge writes"
            )
        return adapted_classifier(name, folder, kwargs)
    config = _checked_config(name, folder, trust_remote_code, kwargs.get("revision"))
    if isinstance(config, PooledClassifierConfig):
        pooling = None  # it has been one for long
    if pooling and (config.is_encoder_decoder or of_tokens):
        what = "a label for each token pools nothing" if of_tokens else f"{str(name)!r} is an encoder-decoder"
        raise ModelError(f"pooling={pooling!r} reads an encoder's text as a whole, and {what}; leave it out")
    if new_head:
        kwargs.update(num_labels=len(labels), id2label=labels, label2id={label: i for i, label in labels.items()})
    # On the left, padding would shift the learned positions of decoder-type classifiers.
    source = {key: kwargs[key] for key in ("revision", "trust_remote_code") if key in kwargs}
    tokenizer = load_tokenizer(folder, padding_side="right", **source)
    family = AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification
    model, report = _load(name, folder, AutoModel if pooling else family, kwargs)
    body = "" if pooling else f"{model.base_model_prefix}."
    other_size = [key for key, *_ in report["mismatched_keys"]]
    fresh = sorted({*report["missing_keys"], *other_size})
    # Sentence encoders are often saved without the pooler; it belongs to the head of a classifier.
    damaged = [key for key in fresh if key.startswith(body) and "pooler." not in key]
    if damaged:
        raise ModelError(
            f"the checkpoint {str(name)!r} lacks weights of its own body, or has them in another size: "
            f"{_some(damaged)}. It is damaged, or of another architecture than its config.json says; get it afresh"
        )
    if fresh and not new_head:
        made_as = (config.architectures or [config.model_type])[0]
        raise ModelError(
            f"{str(name)!r} ({made_as}) is no trained classifier: the checkpoint lacks {_some(fresh)}, so its scores "
            "would be random numbers. Give a fine-tuned classifier, or train one from this model first "
            "(alignkit train recipes/sentiment/classifier.yaml; in Python load_classifier(..., new_head=True))"
        )
    if pooling:
        model = PooledClassifier.on(model, labels)
    _tell_padding(model, tokenizer)
    return model.eval(), tokenizer


def adapted_classifier(
    name: str | os.PathLike, folder: str, kwargs: dict[str, Any], *, as_trained: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`load_classifier` for the adapter in `folder`; without `as_trained` its base is not quantised."""
    settings, saved = adapter_settings(name, folder), saved_shapes(folder)
    if as_trained and kwargs.get("quantization_config") is None:
        kwargs = {**kwargs, **saved_quantization(name, folder)}
    kwargs = base_options(settings, kwargs)
    source = {key: kwargs[key] for key in ("revision", "trust_remote_code") if key in kwargs}
    base = settings["base_model_name_or_path"]
    where = resolve_model(base)
    _checked_config(base, where, kwargs["trust_remote_code"], kwargs.get("revision"))
    size = next((saved[key][0] for key in _OUTPUTS if key in saved), None)
    if (Path(folder) / "config.json").is_file():  # written beside the adapter, for the names of its classes
        with explained(name, folder, "adapter"):
            labels = AutoConfig.from_pretrained(folder).id2label
        kwargs.update(num_labels=len(labels), id2label=labels, label2id={label: i for i, label in labels.items()})
    elif size is not None:
        kwargs["num_labels"] = size
    tokenized = any(any(Path(folder).glob(pattern)) for pattern in _VOCABULARY)
    tokenizer = load_tokenizer(folder if tokenized else where, padding_side="right", **({} if tokenized else source))
    model, report = _load(base, where, AutoModelForSequenceClassification, kwargs)
    fresh = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    lost = sorted(key for key in fresh if key not in saved)
    if lost:
        raise ModelError(
            f"{str(name)!r} is no trained classifier: neither the adapter nor its base {base!r} has {_some(lost)}, so "
            "its scores would be random numbers. Train the adapter with its head: LoraConfig(task_type='SEQ_CLS'), or "
            "modules_to_save"
        )
    _tell_padding(model, tokenizer)
    return cast("PreTrainedModel", load_adapter(model, name, folder)), tokenizer


def _tell_padding(classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Decoder-type classifiers find the last token of a text by the id of the padding."""
    if classifier.config.pad_token_id is None:
        classifier.config.pad_token_id = tokenizer.pad_token_id


def has_weights(folder: str | os.PathLike) -> bool:
    """Whether a model folder holds weights: safetensors or `pytorch_model*.bin`, in one file or several."""
    return any(any(Path(folder).glob(pattern)) for pattern in _WEIGHTS)


def _checked_config(
    name: str | os.PathLike, folder: str, trust_remote_code: bool, revision: str | None
) -> PretrainedConfig:
    if Path(folder).is_dir() and not has_weights(folder):
        raise ModelError(
            f"the model folder {folder!r} has no weights (no *.safetensors, no pytorch_model.bin); "
            "copy them there, or give the folder that save_model wrote"
        )
    with explained(name, folder, "model"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, revision=revision)


def _load(name: str | os.PathLike, folder: str, family: Any, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, dict]:
    verbosity = transformers_logging.get_verbosity()
    # Callers read the report; transformers' own table would stand beside our error, or warn of a head that is wanted.
    transformers_logging.set_verbosity_error()
    try:
        with explained(name, folder, "model"):
            return family.from_pretrained(
                folder, output_loading_info=True, weights_only=True, ignore_mismatched_sizes=True, **kwargs
            )
    finally:
        transformers_logging.set_verbosity(verbosity)


def _with_adapter(
    name: str | os.PathLike, folder: str, kwargs: dict[str, Any], before_adapter: Prepare | None
) -> PreTrainedModel:
    settings = adapter_settings(name, folder)
    if kwargs.get("quantization_config") is None:
        recorded = saved_quantization(name, folder)
        kwargs = {**kwargs, **recorded, "dtype": kwargs["dtype"] or recorded.get("dtype")}
    base = load_causal_or_seq2seq(settings["base_model_name_or_path"], **base_options(settings, kwargs))
    if before_adapter is not None:
        before_adapter(base)
    return cast("PreTrainedModel", load_adapter(base, name, folder))


def base_options(settings: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """How to load the base of an adapter: a revision that was asked for is one of the adapter, not of its base."""
    pinned = {"revision": settings["revision"]} if settings.get("revision") else {}
    return {**{key: value for key, value in kwargs.items() if key != "revision"}, **pinned}


def _precision(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """As `from_pretrained` takes it; float32 for None."""
    return dtype if dtype == "auto" else named_dtype("float32" if dtype is None else dtype)


def _is_encoder(config: PretrainedConfig) -> bool:
    writes = type(config) in AutoModelForCausalLM._model_mapping
    reads = type(config) in AutoModelForMaskedLM._model_mapping
    return reads and (not writes or not getattr(config, "is_decoder", False))


def head_labels(id2label: Mapping[int, str] | None = None, num_labels: int | None = None) -> dict[int, str]:
    """The names of a new head's classes, number -> name; raises `ModelError` when the two arguments do not describe it.

    >>> head_labels({"0": "negative", "1": "positive"}), head_labels(num_labels=2)
    ({0: 'negative', 1: 'positive'}, {0: 'LABEL_0', 1: 'LABEL_1'})
    """
    if id2label is None:
        if not num_labels or num_labels < 1:
            raise ModelError(f"a new head needs num_labels (at least 1) or id2label, got num_labels={num_labels!r}")
        return {i: f"LABEL_{i}" for i in range(num_labels)}
    # Recipes and JSON write the keys as strings.
    labels = {int(i): str(label) for i, label in id2label.items()}
    numbered = sorted(labels) == list(range(len(labels))) and num_labels in (None, len(labels))
    if not labels or not numbered or len(set(labels.values())) < len(labels):
        raise ModelError(
            f"id2label must give each class from 0 to n-1 a name of its own (num_labels={num_labels}), got {labels}"
        )
    return labels


def _some(keys: list[str], shown: int = 4) -> str:
    rest = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + rest
