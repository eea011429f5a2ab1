"""Do the weights move? A "trained but identical" model is noticed while it trains."""

import torch
from torch import nn

from alignkit.models.value_head import CRITIC_NAME, HEAD_NAME

_VALUES = 1_000_000


class WeightProbe:
    """Remembers the beginning of every trainable tensor, about a million values in all, and tells how far they moved.

    Under FSDP or ZeRO it sees this process's shard, which is as good.
    """

    def __init__(self, model: nn.Module):
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad and not _is_critics(n)]
        each = max(_VALUES // max(len(trainable), 1), 1)
        self.model = model
        self.start = {name: _beginning(p, each).clone() for name, p in trainable}

    @torch.no_grad()
    def delta(self) -> float:
        """L2 norm of the change since the start, relative to the norm at the start."""
        moved, size = 0.0, 0.0
        for name, parameter in self.model.named_parameters():
            if name in self.start:
                before = self.start[name]
                now = _beginning(parameter, len(before))
                if len(now) == len(before):  # a tensor that was sharded since is not compared
                    moved += float((now - before).square().sum())
                    size += float(before.square().sum())
        # adapters begin at zero in part; a norm below this floor is no measure to divide by
        return (moved**0.5) / max(size**0.5, 1e-3)


def _is_critics(name: str) -> bool:
    # the critic moves even where the policy is frozen, and that is the case to be noticed
    return f"{HEAD_NAME}." in name or f"{CRITIC_NAME}." in name


def _beginning(parameter: nn.Parameter, count: int) -> torch.Tensor:
    data = parameter.detach()
    data = data.to_local() if hasattr(data, "to_local") else data
    return data.reshape(-1)[:count].float()
