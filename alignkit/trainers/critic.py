"""How the critic learns: where it starts, how fast, and what the log says of it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from alignkit.advantages import explained_variance, moments
from alignkit.models.value_head import HEAD_NAME, is_critics
from alignkit.trainers.rollout import Batch, Rollout


class CriticMixin:
    """For trainers with a value head: a learning rate of its own, and a start at the mean return.

    A head that starts at zero must first learn the level of the returns, and at the policy's learning rate it does so
    for hundreds of steps, through directions of the hidden state that say nothing. So the first rollout's mean return
    becomes its bias, and `value_learning_rate` lets it move faster than the policy may.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.use_vllm and self.uses_values:  # type: ignore[attr-defined]
            keep_critic_at_home(self.vllm_generation)  # type: ignore[attr-defined]

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's optimiser, with the critic's weights in a group of their own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        rate = self.args.value_learning_rate
        if fresh and self.uses_values and rate is not None:
            # the head alone: a separate critic's trunk is a language model, and learns at a language model's rate
            critic = {id(p) for n, p in self.model.named_parameters() if f"{HEAD_NAME}." in n and p.requires_grad}
            moved = []
            for group in optimizer.param_groups:
                moved += [p for p in group["params"] if id(p) in critic]
                group["params"] = [p for p in group["params"] if id(p) not in critic]
            optimizer.add_param_group({"params": moved, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def start_values(self: Any, rollout: Rollout, returns: torch.Tensor, mask: torch.Tensor) -> None:
        """Let an untouched head begin at the mean return, and the values of this rollout with it."""
        if self.state.global_step:
            return
        head = _unwrapped(self).value_head
        head = head.modules_to_save[head.active_adapters[0]] if hasattr(head, "modules_to_save") else head
        sharded = isinstance(self.model_wrapped, FSDPModule)
        if self.is_deepspeed_enabled or (self.is_fsdp_enabled and not sharded):
            return  # the optimiser's own copy of the weights would not hear of it: it starts at zero
        if sharded:
            for module in self.model_wrapped.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # what is written to the copy gathered for a forward is lost
        if any(bool(_whole(weights).any()) for weights in (head.linear.weight, head.linear.bias)):
            return  # restored from a checkpoint
        level = self.global_mean(returns, mask)
        with torch.no_grad():
            head.linear.bias.fill_(level)
        rollout.made.values = rollout.made.values + level * rollout.made.completion_mask

    def watch_values(self: Any, values: torch.Tensor, batch: Batch, value_loss: torch.Tensor) -> None:
        """Log the critic: its loss and its mean."""
        mask, log = batch["learn_mask"], self._metrics["train"]
        log["value_loss"].append(self.global_mean(value_loss, mask))
        log["value/mean"].append(self.global_mean(values, mask))

    def watch_rollout(self: Any, batch: Batch) -> None:
        """Log how much of the returns' variance the critic explained while sampling, over all processes."""
        values, returns, mask = batch["old_values"], batch["returns"], batch["learn_mask"]
        seen = [self.accelerator.reduce(moments(some, mask)) for some in (returns, returns - values)]
        self._metrics["train"]["value/explained_variance"].append(float(explained_variance(*seen)))


def keep_critic_at_home(engine: Any) -> None:
    """Let vLLM be sent the policy's weights alone: its model has no critic, and refuses names that it does not know.

    Args:
        engine: TRL's `VLLMGeneration`; its weights are walked on every process, so they are left out at the very end.
    """
    everything = engine._iter_named_params

    def policys() -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, tensor) for name, tensor in everything() if not is_critics(name))

    engine._iter_named_params = policys


def _whole(weights: torch.Tensor) -> torch.Tensor:
    weights = weights.detach()
    return weights.full_tensor() if isinstance(weights, DTensor) else weights


def _unwrapped(trainer: Any) -> Any:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model
