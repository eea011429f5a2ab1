"""The reference model: what the policy was before training, for the KL penalty and for judging the change."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from alignkit.errors import ModelError
from alignkit.models.scoring import add_scoring, untaught_copy


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` in evaluation mode whose weights do not train, ready to score completions.

    Take it before a value head or scoring is added to the original.
    """
    reference = untaught_copy(model)
    reference.requires_grad_(False)
    reference.eval()
    add_scoring(reference)
    return reference


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
    with unwrapped.disable_adapter():
        yield policy
