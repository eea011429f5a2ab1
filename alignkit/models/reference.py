"""The reference model: what the policy was before training, for the KL penalty and for judging the change."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from alignkit.errors import ModelError
from alignkit.models.scoring import add_scoring, untaught_copy


def frozen_copy(model: PreTrainedModel, *, share_frozen: bool = False) -> PreTrainedModel:
    """A copy of `model` in evaluation mode whose weights do not train, ready to score completions.

    Take it before a value head or scoring is added to the original. An adapter stays an adapter: folded into its base
    it would be rounded, badly so where the base is quantised.

    Args:
        model: with an adapter or without.
        share_frozen: hold the weights that do not train together with `model`, so that the reference of an adapter
            costs an adapter. Not where they are sharded.
    """
    reference = untaught_copy(model, _frozen(model) if share_frozen else ())
    for parameter in reference.parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(False)
    reference.eval()
    add_scoring(reference)
    return reference


def _frozen(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from (parameter for parameter in model.parameters() if not parameter.requires_grad)
    module: Any  # bitsandbytes' layers have attributes of their own
    for module in model.modules():
        if hasattr(module, "init_8bit_state"):
            # bitsandbytes moves 8-bit weights into a state of their layer, in its first forward and once only
            if module.weight.CB is not None:
                module.init_8bit_state()
            yield from (tensor for tensor in vars(module.state).values() if isinstance(tensor, torch.Tensor))


@contextmanager
def reference_of(policy: nn.Module, reference: nn.Module | None) -> Iterator[nn.Module]:
    """The model to score with: `reference` if there is one, else the policy with its adapter switched off.

    With LoRA the base weights *are* the reference, which saves a copy of the model.

    Raises:
        ModelError: there is neither a reference nor an adapter.
    """
    if reference is not None:
        yield reference
        return
    unwrapped = policy.module if hasattr(policy, "module") else policy
    if not isinstance(unwrapped, PeftModel):
        raise ModelError(
            f"no reference model was given and {type(unwrapped).__name__} has no adapter to switch off; "
            "pass ref_model, or train with peft_config"
        )
    # training mode is the policy's: what it drops out must not reach the reference
    training = [module for module in policy.modules() if module.training]
    policy.eval()
    try:
        with unwrapped.disable_adapter():
            yield policy
    finally:
        for module in training:
            module.training = True
