"""What a training holds in memory from its first step to its last, computed from shapes: no weights are loaded.

Weights, gradients, the optimiser's states and the reference; `docs/memory.md` has the sums by hand and says what comes
on top (activations, caches, the networks of rewards).
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig

from alignkit.models.value_head import attach_value_head
from alignkit.trainers.preparation import with_saved_heads

GIB = 2**30
# bitsandbytes: a scale of 4 bytes for each row of an 8-bit matrix and for each 64 weights of a 4-bit one, or, where it
# is quantised doubly, 1 byte for each 64 and 4 for each 64 * 256; 8-bit states have 4 for each 256, and tensors below
# 4096 values keep 32 bits
_BLOCK_OF_WEIGHTS, _BLOCK_OF_SCALES, _BLOCK_OF_STATES, _LEAST_8BIT = 64, 256, 256, 4096
# transformers' name of an optimiser -> numbers that it keeps for each weight, as wide as the weight
_AS_WIDE = {"adamw_torch": 2, "adamw_torch_fused": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0}
# the same for those of bitsandbytes, in 32 bits or 8
_BITSANDBYTES = {"adamw": 2, "ademamix": 3, "lion": 1, "rmsprop": 1}
_NAME_THERE = re.compile(rf"(?:paged_)?({'|'.join(_BITSANDBYTES)})(?:_bnb)?(?:_(8|32)bit)?")


@dataclass(frozen=True)
class Held:
    """Bytes that stay allocated while a model trains.

    Attributes:
        parameters: numbers in policy, critic and adapter, before quantisation; of these `trainable` learn.
        trainable: numbers that learn.
        weights: bytes of policy, critic and adapter.
        gradients: bytes, as wide as the weights that learn.
        optimiser: bytes of its states; None for an optimiser that is not known here.
        reference: bytes of the frozen copy; 0 where it is the model with its adapter off, None where it is not known.
    """

    parameters: int
    trainable: int
    weights: float
    gradients: float
    optimiser: float | None
    reference: float | None

    @property
    def total(self) -> float:
        """All of them that are known, in bytes."""
        return self.weights + self.gradients + (self.optimiser or 0) + (self.reference or 0)

    def sentence(self) -> str:
        """The figures in GiB, for people."""
        named = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.optimiser,
            "reference": self.reference,
        }
        parts = ", ".join(
            f"{name} not known" if size is None else f"{name} {size / GIB:.2f}" for name, size in named.items()
        )
        less = " without what is not known" if None in named.values() else ""
        return (
            f"{self.total / GIB:.2f} GiB held throughout{less} ({parts}) for {_count(self.parameters)} parameters, "
            f"of which {_count(self.trainable)} train; "
            "activations and the networks of rewards come on top (docs/memory.md)"
        )


def shapes(config: PretrainedConfig, dtype: torch.dtype, **source: Any) -> Any:
    """The model of a configuration without its weights: every tensor on the device `meta`.

    Args:
        config: of a causal LM or an encoder-decoder.
        dtype: of the weights.
        source: `trust_remote_code`, for models that bring their own code.
    """
    family: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = family.from_config(config, dtype=dtype, **source)
    model.tie_weights()
    return model


def held(
    model: Any,
    *,
    optim: str = "adamw_torch_fused",
    optim_args: str | None = None,
    adapter: Any = None,
    quantization: Any = None,
    values: bool = False,
    separate_critic: bool = False,
    reference: bool = True,
) -> Held:
    """What training `model` holds. The model is changed: value head and adapter are put on it, as a trainer does.

    Args:
        model: from `shapes`, in the precision in which its weights are loaded.
        optim: transformers' name of the optimiser.
        optim_args: transformers' further settings of it.
        adapter: `LoraConfig`, or None where all weights learn.
        quantization: `BitsAndBytesConfig`, or None.
        values: whether there is a value head.
        separate_critic: whether it has a trunk of its own.
        reference: whether a frozen copy is kept; with an adapter there is none.
    """
    base = stored(model, quantization)
    if values:
        attach_value_head(model, separate_critic=separate_critic)
    if adapter is not None:
        model = get_peft_model(model, with_saved_heads(model, adapter), low_cpu_mem_usage=True)
        if quantization is not None:
            for name, parameter in model.named_parameters():  # adapter and head learn in float32 then
                if parameter.requires_grad:
                    _set(model, name, nn.Parameter(parameter.float()))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Held(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable=sum(parameter.numel() for parameter in learning),
        weights=stored(model, quantization),
        gradients=sum(parameter.numel() * parameter.element_size() for parameter in learning),
        optimiser=_states(model, optim, optim_args or ""),
        reference=base if reference and adapter is None else 0,
    )


def stored(model: Any, quantization: Any) -> float:
    """Bytes of a model's weights, with those of the linear layers in 8 or 4 bits where they are quantised.

    Args:
        model: from `shapes`.
        quantization: `BitsAndBytesConfig`, or None.
    """
    small: dict[int, float] = {}
    if quantization is not None:
        head = model.get_output_embeddings()
        skipped = quantization.llm_int8_skip_modules or []
        for name, module in model.named_modules():
            linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
            ours = ".lora_" in name or "value_head" in name  # added after the base was quantised
            if linear and module is not head and not ours and not any(part in name for part in skipped):
                small[id(module.weight)] = _quantised(module, quantization)
    return sum(small.get(id(p), p.numel() * p.element_size()) for p in model.parameters())


def _set(model: nn.Module, name: str, value: nn.Parameter) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, value)


def _quantised(module: Any, quantization: Any) -> float:
    count = module.weight.numel()
    if quantization.load_in_8bit:
        rows = module.weight.shape[1] if type(module).__name__ == "Conv1D" else module.weight.shape[0]
        return count + 4 * rows
    blocks = count / _BLOCK_OF_WEIGHTS
    scales = blocks * (1 + 4 / _BLOCK_OF_SCALES) if quantization.bnb_4bit_use_double_quant else 4 * blocks
    return count / 2 + scales


def _states(model: nn.Module, optim: str, settings: str) -> float | None:
    """Bytes of the optimiser's states, or None where the optimiser is not known here."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optim == "adafactor":  # transformers': in float32, whatever the weights are in
        return 4 * sum(_factored(parameter.shape) for parameter in learning)
    if optim in _AS_WIDE:
        if re.search("momentum|centered", settings):  # each keeps one number more
            return None
        return sum(_AS_WIDE[optim] * parameter.numel() * parameter.element_size() for parameter in learning)
    named = _NAME_THERE.fullmatch(optim)
    if named is None:
        return None
    # transformers' Trainer keeps the states of every embedding in 32 bits, and so those of an output layer tied to it
    wide = {
        id(weight) for module in model.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()
    }
    each = [
        1 + 4 / _BLOCK_OF_STATES if named[2] == "8" and p.numel() >= _LEAST_8BIT and id(p) not in wide else 4
        for p in learning
    ]
    return sum(_BITSANDBYTES[named[1]] * p.numel() * width for p, width in zip(learning, each, strict=True))


def _factored(shape: torch.Size) -> int:
    """Numbers that Adafactor keeps for a tensor: the sums along rows and columns of its last two dimensions."""
    if len(shape) < 2:
        return shape.numel()
    return shape[:-1].numel() + (shape[:-2] + shape[-1:]).numel()


def _count(number: int) -> str:
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number}"
