"""The same computation by a faster way: what is swapped here changes figures by rounding only."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

# Forward and backward of attention in bf16 on a CPU, fused against plain, measured with four heads of 64: 23 ms
# against 7 at 63 tokens, 25 against 12 at 128, 19 against 22 at 256.
_SHORT = 192
# One token after 60, of 32 rows: 0.8 ms against 0.3.
_ONE_TOKEN = 1
_KEPT_FREE = 2**30
_LARGEST_MMAP_THRESHOLD = 2**25  # that glibc accepts


def fuse_activations(model: nn.Module) -> None:
    """Compute GPT-2's GELU by torch's one operation instead of the host's seven.

    Each of the seven keeps a tensor of the feed-forward layer's width for the backward pass.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))


@torch.no_grad()
def _attend_alike(model: PreTrainedModel) -> bool:
    """Whether the host's two attentions are one function in this model: found out once, by trying in float32.

    They are two where one caps its logits, or adds positions to them otherwise (Falcon's ALiBi).
    """
    known = model.__dict__.get("_alignkit_attends_alike")
    if known is None:
        ids = torch.arange(2, 8, device=model.device).view(2, 3) % model.config.get_text_config().vocab_size
        mask = torch.tensor([[1, 1, 1], [0, 1, 1]], device=model.device)
        was_training = model.training
        model.eval()
        seen = []
        with torch.autocast(model.device.type, enabled=False):
            for way in ("eager", "sdpa"):
                model.config._attn_implementation = way
                seen.append(_first_output(model, ids, mask).float()[mask.bool()])
        model.train(was_training)
        limit = 1e-4 if model.dtype == torch.float32 else 3e-2
        known = bool((seen[0] - seen[1]).abs().max() <= limit * seen[1].abs().max())
        model.__dict__["_alignkit_attends_alike"] = known
    return known


def _first_output(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, attention_mask=mask, use_cache=False, **more)[0]


def recomputes(model: nn.Module) -> bool:
    """Whether some module computes its activations again in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@contextmanager
def attention_for(model: PreTrainedModel, length: int) -> Iterator[None]:
    """Choose the host's plain attention inside, where its fused one is slower: in bf16 on a CPU, for short sequences
    that will be differentiated and for one token more. Everywhere else nothing is changed.

    Args:
        model: its config is set back at the end.
        length: tokens of a sequence that the model is given.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else model.dtype
    config = model.config
    slow = length <= _SHORT if torch.is_grad_enabled() else length == _ONE_TOKEN
    plain = (
        slow
        and model.device.type == "cpu"
        and dtype == torch.bfloat16
        and config._attn_implementation == "sdpa"
        and not (torch.is_grad_enabled() and recomputes(model))  # the second time would go the other way
        and _attend_alike(model)
    )
    if not plain:
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


@cache
def keep_freed_memory() -> bool:
    """Ask glibc to keep the memory that a step frees for the next step; True where there is a glibc to ask.

    By default it gives the activations of every backward pass back to the system and gets them anew, page by page, in
    the next forward: some 5 to 10% of a small model's step on a CPU. The peak stays what it was.
    `MALLOC_TRIM_THRESHOLD_` in the environment is respected.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return False
    # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h; the second stops adapting once the first is set
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(-1, _KEPT_FREE) and libc.mallopt(-3, _LARGEST_MMAP_THRESHOLD))
