"""Fold an adapter into its base: a plain model folder, for everything that knows nothing of adapters."""

import gc
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from alignkit.errors import ModelError
from alignkit.models.adapters import adapter_settings, holds_adapter, load_adapter, saved_quantization, saved_shapes
from alignkit.models.loading import (
    adapted_classifier,
    base_options,
    load_causal_or_seq2seq,
    load_classifier,
    load_tokenizer,
)
from alignkit.models.locating import resolve_model
from alignkit.models.precision import named_dtype
from alignkit.models.value_head import CRITIC_NAME, HEAD_NAME, attach_value_head, save_value_head, split_head


@dataclass(frozen=True)
class Merged:
    """What a merge wrote, and how far it is from what was trained.

    Attributes:
        folder: the new model.
        base: the model that the adapter was for.
        dtype: of the weights, such as `bfloat16`.
        quantised: whether the adapter was trained on a quantised base.
        difference: largest difference of any logit between the adapter on the base that it was trained on and the
            folder as plain transformers loads it, on 64 tokens.
        scale: largest absolute logit there, to hold `difference` against.
    """

    folder: Path
    base: str
    dtype: str
    quantised: bool
    difference: float
    scale: float


def merge_adapter(
    model: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: str | None = None,
    value_head: bool = False,
    trust_remote_code: bool = False,
) -> Merged:
    """Fold an adapter into its base, computed in float32, and save a whole model with its tokenizer.

    An adapter that was trained on a quantised base is folded into the base as it was before: the base is loaded again
    without quantisation, and the outputs then differ a little from the quantised ones; `difference` says how much.

    Args:
        model: the folder of an adapter, of a language model or a sequence classifier, or that of a run.
        output: folder to write; it must not exist, or be empty.
        dtype: of the saved weights, such as `bfloat16` or `bf16`; that of the base when None.
        value_head: write the critic, if the adapter has one, beside the model (`value_head.safetensors`), for PPO to
            go on with.
        trust_remote_code: run Python code that the base brings along.

    Returns:
        what was written.

    Raises:
        ModelError: there is no adapter, its base is not there or is stored quantised, or `output` holds something.
    """
    target = Path(output)
    asked = None if dtype is None else named_dtype(dtype)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{str(target)!r} exists and is not an empty folder; nothing is written over: give another")
    name = os.fspath(model)
    folder = resolve_model(name)
    if not holds_adapter(folder):
        if not Path(folder).is_dir():
            raise ModelError(f"there is no folder {str(name)!r}; give a run, or the folder of a model with an adapter")
        raise ModelError(f"{str(name)!r} holds no adapter (no adapter_config.json): it is a whole model already")
    settings = adapter_settings(name, folder)
    base = settings["base_model_name_or_path"]
    source = base_options(settings, {"trust_remote_code": trust_remote_code})
    config = AutoConfig.from_pretrained(resolve_model(base), **source)
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"the base {base!r} is stored quantised, so there are no full weights to fold the adapter into; name the "
            f"model it was made of in {folder}/adapter_config.json (base_model_name_or_path)"
        )
    saved = saved_shapes(folder)
    if value_head and f"{HEAD_NAME}.linear.weight" not in saved:
        raise ModelError(f"{str(name)!r} holds no value head among its adapter's weights; leave value_head out")
    classifies = settings.get("task_type") == "SEQ_CLS" or (config.architectures or [""])[0].endswith(
        "ForSequenceClassification"
    )
    tokenizer, trained, quantised = _as_trained(name, folder, classifies, trust_remote_code)
    whole = _whole(name, folder, base, classifies, source, saved if value_head else {}, trust_remote_code)
    merged = _fold(whole)
    kind = asked or _dtype_of(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        unfinished = Path(scratch) / "model"
        unfinished.mkdir()
        if value_head:
            save_value_head(split_head(merged.state_dict())[0], str(unfinished))
        for part in (HEAD_NAME, CRITIC_NAME):
            merged._modules.pop(part, None)
        merged.to(kind).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        family, merged, whole = type(merged), None, None
        gc.collect()
        plain = family.from_pretrained(unfinished, dtype=kind, trust_remote_code=trust_remote_code).eval()
        difference = float((_probe(plain) - trained).abs().max())
        written = str(kind).removeprefix("torch.")
        made = Merged(target, str(base), written, quantised, difference, float(trained.abs().max()))
        (unfinished / "README.md").write_text(_card(made, str(model)), encoding="utf-8")
        if target.exists():
            target.rmdir()  # empty, as was seen above
        unfinished.rename(target)
    return made


def _as_trained(name: Any, folder: str, classifies: bool, trust: bool) -> tuple[Any, torch.Tensor, bool]:
    """The tokenizer, logits of the adapter on the base that it was trained on, and whether that was quantised."""
    quantised = bool(saved_quantization(name, folder))
    if classifies:
        model, tokenizer = load_classifier(name, trust_remote_code=trust)
    else:
        model = load_causal_or_seq2seq(name, trust_remote_code=trust)
        tokenizer = load_tokenizer(name, trust_remote_code=trust)
    return tokenizer, _probe(model), quantised


def _whole(
    name: Any, folder: str, base: str, classifies: bool, source: dict, head: dict, trust: bool
) -> PreTrainedModel:
    """The adapter on its base in float32 without quantisation, the critic there where `head` names its tensors."""
    if classifies:
        options = {"trust_remote_code": trust, "dtype": "float32"}
        return adapted_classifier(name, folder, options, as_trained=False)[0]
    model = load_causal_or_seq2seq(base, **source)
    if head:
        attach_value_head(model, separate_critic=any(key.startswith(f"{CRITIC_NAME}.") for key in head))
    return load_adapter(model, name, folder)


def _fold(model: Any) -> PreTrainedModel:
    base = model.get_base_model()
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    apart = _is_adapted(embeddings) or _is_adapted(head)
    if head is not None and apart and getattr(base.config, "tie_word_embeddings", False):
        # one tensor serves both ends: folded into, it would change the end that was not adapted
        layer = _plain(head)
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False
    return model.merge_and_unload(safe_merge=True)


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "base_layer") or hasattr(module, "original_module")


def _plain(module: Any) -> Any:
    return getattr(module, "base_layer", getattr(module, "original_module", module))


def _dtype_of(config: Any) -> torch.dtype:
    kept = getattr(config, "dtype", None)
    return torch.float32 if kept is None else named_dtype(kept)


@torch.no_grad()
def _probe(model: Any) -> torch.Tensor:
    """Logits on 4 sequences of 16 token ids spread over the vocabulary: the same for every model of one size."""
    size = model.config.get_text_config().vocab_size
    ids = torch.linspace(0, size - 1, 64).long().reshape(16, 4).T.contiguous().to(model.device)
    pad = getattr(model.config, "pad_token_id", None)
    if pad is not None:  # a classifier would take it for the end of the text
        ids = torch.where(ids == pad, (ids + 1) % size, ids)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return model(**inputs).logits.float().cpu()


def _card(made: Merged, adapter: str) -> str:
    before = ", which was quantised while the adapter learned," if made.quantised else ""
    return (
        f"---\nlibrary_name: transformers\nbase_model: {made.base}\ntags:\n- alignkit\n---\n\n"
        f"The adapter `{Path(adapter).name}`, folded into `{made.base}`{before} by `alignkit merge`; weights in "
        f"{made.dtype}. On 64 tokens the logits differ from those of the adapter by at most {made.difference:.2g} "
        f"(largest logit {made.scale:.3g}).\n"
    )
