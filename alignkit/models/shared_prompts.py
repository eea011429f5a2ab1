"""Several completions of one prompt: the prompt is read once, in the forward pass and in the backward pass.

A causal model's states at a prompt do not depend on what follows it. So a batch in which each prompt stands G times
needs P + G * T tokens of work for a prompt of P tokens and completions of T, instead of G * (P + T); the gradient flows
back through the prompt's keys and values from all of its completions.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from alignkit.models.faster import recomputes

# the prompt's keys and values are copied for every completion: with fewer than two a prompt there is little to gain
_LEAST_COPIES = 2
_ATTENTION = ("eager", "sdpa")  # flash attention cuts padding off on one side only
# rotary positions that are turned otherwise in a longer text: the prompt alone would be read by other ones
_BY_LENGTH = {"longrope", "dynamic"}


@dataclass
class SharedPrompts:
    """Which rows of a batch of B are the same prompt.

    Attributes:
        first: (U,) a row of each group of equal rows.
        copies: (B,) the group of each row.
    """

    first: torch.Tensor
    copies: torch.Tensor


def equal_rows(ids: torch.Tensor, mask: torch.Tensor) -> SharedPrompts | None:
    """Group rows of `ids` and `mask`, both (B, P), that are equal in both; None where all are different."""
    _, copies = torch.cat([ids, mask.to(ids.dtype)], 1).unique(dim=0, return_inverse=True)
    groups = int(copies.max()) + 1
    if groups == len(ids):
        return None
    rows = torch.arange(len(ids), device=ids.device)
    return SharedPrompts(rows.new_full((groups,), len(ids)).scatter_reduce(0, copies, rows, "amin"), copies)


class _OncePerPrompt(DynamicLayer):
    """Keeps the keys and values of U prompts as they are, and gives a row for each of B completions afterwards."""

    keys: Any  # (U, H, P, D), as the host's class declares them: None before the prompts
    values: Any

    def __init__(self, copies: torch.Tensor):
        super().__init__()
        self.copies = copies

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep what comes first, (U, H, P, D); put what comes then, (B, H, T, D), behind its own prompt's."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        both = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([kept.index_select(0, self.copies), new], -2) for kept, new in both)
        return keys, values


def predicting_states(
    model: PreTrainedModel, backbone: nn.Module, inputs: dict[str, torch.Tensor], prompt_length: int
) -> torch.Tensor | None:
    """The backbone's states that predict each completion's tokens, with each prompt read once.

    Args:
        model: what `backbone` belongs to; its config says what the backbone keeps of a text.
        backbone: gives hidden states.
        inputs: `input_ids` (B, P + T - 1), prompts padded on the left and completions without their last token on the
            right; `attention_mask` and `position_ids` of the same shape.
        prompt_length: P.

    Returns:
        (B, T, D); None where no two prompts are equal, or where this model cannot do it.
    """
    if "position_ids" not in inputs or not _keeps_keys_and_values(model, backbone) or _weights_are_gathered(model):
        return None
    ids, mask, positions = (inputs[key] for key in ("input_ids", "attention_mask", "position_ids"))
    prompts, prompt_mask = ids[:, :prompt_length], mask[:, :prompt_length]
    shared = equal_rows(prompts, prompt_mask)
    if shared is None or len(shared.first) * _LEAST_COPIES > len(ids):
        return None
    cache = DynamicCache(config=model.config)
    cache.layers = [_OncePerPrompt(shared.copies) for _ in cache.layers]
    first = shared.first
    of_prompts = backbone(
        input_ids=prompts.index_select(0, first),
        attention_mask=prompt_mask.index_select(0, first),
        position_ids=positions[:, :prompt_length].index_select(0, first),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    last = of_prompts[:, -1:].index_select(0, shared.copies)
    if ids.shape[1] == prompt_length:
        return last
    of_completions = backbone(
        input_ids=ids[:, prompt_length:],
        attention_mask=mask,
        position_ids=positions[:, prompt_length:],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([last, of_completions], 1)


def _keeps_keys_and_values(model: PreTrainedModel, backbone: nn.Module) -> bool:
    """Whether all that the model keeps of a text is each token's keys and values (no window, no recurrent state)."""
    if model.config.is_encoder_decoder or model.config._attn_implementation not in _ATTENTION:
        return False
    if model.training and recomputes(model):
        return False  # the host keeps no cache then, with gradients or without
    if _rotary_kinds(model.config) & _BY_LENGTH:
        return False
    if "past_key_values" not in inspect.signature(backbone.forward).parameters:
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _rotary_kinds(config: Any) -> set[str]:
    settings = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    each = [value for value in settings.values() if isinstance(value, dict)] or [settings]  # one for each kind of layer
    return {str(value.get("rope_type")) for value in each}


def _weights_are_gathered(model: nn.Module) -> bool:
    """Whether a forward is a meeting of all processes, to which each must come equally often."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return False
    sharded = (FullyShardedDataParallel, FSDPModule)
    return is_deepspeed_zero3_enabled() or any(isinstance(module, sharded) for module in model.modules())
