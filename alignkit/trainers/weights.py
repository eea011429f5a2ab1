"""Do the weights move? A "trained but identical" model is noticed while it trains."""

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from alignkit.models.value_head import CRITIC_NAME, HEAD_NAME

_VALUES = 1_000_000


class WeightProbe:
    """Remembers the beginning of every trainable tensor, about a million values in all, and tells how far they moved.

    Under FSDP and ZeRO-3 a process compares what lies in its own shard. The first process, which writes the log, has
    the beginning of every tensor.

    Args:
        model: before anything shards it; its parameters are looked up by name each time.
    """

    def __init__(self, model: nn.Module):
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad and not _is_critics(n)]
        each = max(_VALUES // max(len(trainable), 1), 1)
        self.model = model
        self.start = {}
        for name, parameter in trainable:
            values, offset = _local(parameter)
            self.start[name] = offset, values[:each].float().clone()

    @torch.no_grad()
    def delta(self) -> float:
        """L2 norm of the change since the start, relative to the norm at the start."""
        moved, size = 0.0, 0.0
        for name, parameter in self.model.named_parameters():
            if name in self.start:
                begins, before = self.start[name]
                values, offset = _local(parameter)
                first, end = max(begins, offset), min(begins + len(before), offset + len(values))
                if first < end:
                    before, now = before[first - begins : end - begins], values[first - offset : end - offset].float()
                    moved += float((now - before.to(now.device)).square().sum())
                    size += float(before.square().sum())
        # adapters begin at zero in part; a norm below this floor is no measure to divide by
        return (moved**0.5) / max(size**0.5, 1e-3)


def _is_critics(name: str) -> bool:
    # the critic moves even where the policy is frozen, and that is the case to be noticed
    return f"{HEAD_NAME}." in name or f"{CRITIC_NAME}." in name


def _local(parameter: Any) -> tuple[torch.Tensor, int]:
    """What this process holds of a tensor, flattened, and the place in the flattened whole where it begins."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3: equal parts, one after the other
        part = parameter.ds_tensor.detach()
        rank = torch.distributed.get_rank(getattr(parameter, "ds_process_group", None))
        begins = rank * part.numel()
        return part.reshape(-1)[: max(parameter.ds_numel - begins, 0)], begins
    data = parameter.detach()
    if isinstance(data, DTensor):
        local, shape, begins = data.to_local(), data.shape, 0
        for dimension, placement in enumerate(data.placements):
            if placement.is_shard(0) and data.device_mesh.size(dimension) > 1:
                # as `torch.chunk` cuts: all parts but the last are of one size
                rows = -(-shape[0] // data.device_mesh.size(dimension))
                begins = min(data.device_mesh.get_local_rank(dimension) * rows, shape[0]) * math.prod(shape[1:])
        return local.reshape(-1), begins
    return data.reshape(-1), 0
