"""PPO with any reward callable: what TRL had until 1.12, on the trainer that TRL has today."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.advantages import gae, moments, returns_to_go, whiten
from alignkit.losses import clipped_policy_loss, clipped_value_loss, probability_ratio
from alignkit.models.value_head import CRITIC_NAME, HEAD_NAME
from alignkit.trainers.critic import CriticMixin
from alignkit.trainers.on_policy import OnPolicyTrainer
from alignkit.trainers.pieces import in_pieces
from alignkit.trainers.ppo_config import PPOConfig
from alignkit.trainers.ptx import PtxText
from alignkit.trainers.rollout import Batch, Rollout


class PPOTrainer(CriticMixin, OnPolicyTrainer):
    """The on-policy base with a value head, GAE, and clipped policy and value losses (Schulman et al. 2017).

    The KL to the reference is part of each token's reward (Ziegler et al. 2019). Takes `OnPolicyTrainer`'s arguments
    and:

    Args:
        ptx_dataset: text whose likelihood is kept up beside the reward (`ptx_coef`, InstructGPT's PPO-ptx).
    """

    _tag_names = ["alignkit", "ppo"]  # noqa: RUF012
    _name = "PPO"
    config_class = PPOConfig
    granularities = ("completion", "token")
    uses_values = True

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        *rest: Any,
        ptx_dataset: Any = None,
        **named: Any,
    ):
        super().__init__(model, reward_funcs, args, *rest, **named)
        self.ptx = PtxText.from_settings(ptx_dataset, self.args, self.processing_class, self.accelerator)
        if self.args.value_warmup_steps:
            self.add_callback(ValueWarmup(self.args.value_warmup_steps))

    def shape(self, rollout: Rollout) -> Batch:
        """Add (B, T) `old_values`, `returns` and `advantages`."""
        batch = super().shape(rollout)
        mask = batch["learn_mask"]
        rewards = batch["rewards"]
        self.start_values(rollout, returns_to_go(rewards, mask, self.args.gamma), mask)
        values = rollout.made.values
        advantages, returns = gae(rewards, values, mask, self.args.gamma, self.args.lam)
        self._metrics["train"]["returns/mean"].append(self.global_mean(returns, mask))
        if self.args.whiten_advantages:
            advantages = whiten(advantages, mask, self.accelerator.reduce(moments(advantages, mask)))
        batch.update(old_values=values, returns=returns, advantages=advantages)
        self.watch_rollout(batch)
        return batch

    def with_extra_text(self, batch: Batch) -> Batch:
        """Add as many ptx texts as the micro-batch has rows."""
        return batch if self.ptx is None else {**batch, **self.ptx.next(len(batch["prompt_ids"]), self._step)}

    @in_pieces
    def update(self, model: Any, batch: Batch) -> torch.Tensor:
        """`policy + vf_coef * value - entropy_coef * entropy + ptx_coef * ptx`, all means over the optimiser step."""
        scores, extra = self.joint_scores(model, batch, "full")
        self.watch(batch, scores)
        mask, log = batch["learn_mask"], self._metrics["train"]
        policy_loss, policy_clipped = clipped_policy_loss(
            scores["log_probs"], batch["old_log_probs"], batch["advantages"], self.args.cliprange
        )
        value_loss, value_clipped = clipped_value_loss(
            scores["values"], batch["old_values"], batch["returns"], self.args.cliprange_value
        )
        loss = self.mean_over_tokens(policy_loss + self.args.vf_coef * value_loss, batch)
        if self.state.global_step < self.args.value_warmup_steps:
            loss = self.mean_over_tokens(self.args.vf_coef * value_loss + 0.0 * policy_loss, batch)
        if self.args.entropy_coef:
            loss = loss - self.args.entropy_coef * self.mean_over_tokens(scores["entropy"], batch)
        if extra is not None:
            ptx = self.extra_loss(extra, batch)
            loss = loss + self.args.ptx_coef * ptx
            scale = self.args.gradient_accumulation_steps
            log["ptx_loss"].append(self.accelerator.gather(ptx.detach() * scale).mean().item())
        log["policy_loss"].append(self.global_mean(policy_loss, mask))
        self.watch_values(scores["values"], batch, value_loss)
        log["clip_ratio"].append(self.global_mean(policy_clipped.float(), mask))
        log["value_clip_ratio"].append(self.global_mean(value_clipped.float(), mask))
        ratio = torch.where(mask.bool(), probability_ratio(scores["log_probs"].detach(), batch["old_log_probs"]), 1.0)
        log["ratio_max"].append(self.accelerator.gather(ratio.max()).max().item())
        return loss


class ValueWarmup(TrainerCallback):
    """Lets only the critic learn in the first steps: drops every other gradient before the optimiser sees it.

    Args:
        steps: optimiser steps to hold the policy still.
    """

    def __init__(self, steps: int):
        self.steps = steps

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step >= self.steps:
            return
        for name, parameter in model.named_parameters():
            if f"{HEAD_NAME}." not in name and f"{CRITIC_NAME}." not in name:
                parameter.grad = None
