"""REINFORCE with a baseline: the score-function gradient, and optionally the likelihood of a reference text."""

from dataclasses import dataclass, field
from typing import Any

import torch

from alignkit.advantages import leave_one_out, moments, returns_to_go, whiten
from alignkit.losses import reinforce_loss
from alignkit.trainers.critic import CriticMixin
from alignkit.trainers.on_policy import OnPolicyTrainer
from alignkit.trainers.on_policy_config import OnPolicyConfig, Range
from alignkit.trainers.pieces import in_pieces
from alignkit.trainers.rollout import Batch, Rollout
from alignkit.trainers.trl_ppo import Moved

BASELINES = ("leave_one_out", "batch_mean", "learned", "none")


@dataclass
class ReinforceConfig(OnPolicyConfig):
    """Settings of `ReinforceTrainer`.

    Args:
        baseline: `leave_one_out` (mean of the prompt's other completions; needs num_generations >= 2), `batch_mean`,
            `learned` (a per-token linear head on the detached state, trained by squared error) or `none`.
        baseline_coef: weight of the learned baseline's loss.
        entropy_coef: weight of an entropy bonus.
    """

    num_generations: int | None = field(default=4, metadata={"help": "Completions sampled for each prompt."})
    baseline: str = field(default="leave_one_out", metadata={"help": "leave_one_out, batch_mean, learned or none."})
    baseline_coef: float = field(default=0.5, metadata={"help": "Weight of the learned baseline's loss."})

    _ranges = {  # noqa: RUF012  (a table for all, no setting)
        **OnPolicyConfig._ranges,
        "baseline_coef": Range(advice="0 teaches the baseline nothing"),
    }

    def _contradictions(self) -> list[str]:
        problems = super()._contradictions()
        if self.baseline not in BASELINES:
            problems.append(f"baseline={self.baseline!r}; expected one of {', '.join(BASELINES)}")
        if self.baseline == "leave_one_out" and self.num_generations == 1:
            problems.append(
                "baseline='leave_one_out' compares the completions of a prompt; num_generations=1 leaves none to "
                "compare with: set num_generations to 2 or more, or baseline to batch_mean or learned"
            )
        if self.num_iterations != 1:
            problems.append(
                f"num_iterations={self.num_iterations}: REINFORCE's gradient holds only for the policy that sampled; "
                "set it to 1, or use PPOTrainer"
            )
        if self.steps_per_generation is not None and self.steps_per_generation > self.gradient_accumulation_steps:
            problems.append(
                f"steps_per_generation={self.steps_per_generation} spreads a rollout over several optimiser steps "
                f"(gradient_accumulation_steps={self.gradient_accumulation_steps}), but REINFORCE's gradient holds "
                "only for the policy that sampled; leave it out, raise gradient_accumulation_steps, or use PPOTrainer"
            )
        return problems


class ReinforceTrainer(CriticMixin, OnPolicyTrainer):
    """The on-policy base with advantage = return - baseline and the loss `-A log pi` (Williams 1992).

    With `rl_weight` below 1 the likelihood of a reference text is added (the hybrid objective of Shin et al. 2019,
    Eq. 10); it is scored in the same forward.
    """

    _tag_names = ["alignkit", "reinforce"]  # noqa: RUF012
    _name = "REINFORCE"
    config_class = ReinforceConfig
    granularities = ("completion", "token")
    moved = {"value_model": Moved(("baseline",), "learned is a head on the policy")}  # noqa: RUF012  (a table for all)

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: ReinforceConfig | None = None, *rest: Any, **named: Any
    ):
        # a config of another class is refused by the base, in words
        self.uses_values = isinstance(args, ReinforceConfig) and args.baseline == "learned"
        super().__init__(model, reward_funcs, args, *rest, **named)

    def shape(self, rollout: Rollout) -> Batch:
        """Add (B, T) `returns` and `advantages`, and the reference texts as `extra_*` where the MLE term is on."""
        batch = super().shape(rollout)
        mask = batch["learn_mask"]
        returns = returns_to_go(batch["rewards"], mask, self.args.gamma)
        if self.uses_values:
            self.start_values(rollout, returns, mask)
        advantages = (returns - self._baseline(rollout, returns, mask)) * mask
        log = self._metrics["train"]
        log["returns/mean"].append(self.global_mean(returns, mask))
        if self.args.whiten_advantages:
            advantages = whiten(advantages, mask, self.accelerator.reduce(moments(advantages, mask)), shift_mean=False)
        batch.update(advantages=advantages, returns=returns)
        if self.uses_values:
            batch["old_values"] = rollout.made.values
            self.watch_rollout(batch)
        if self.args.rl_weight < 1:
            batch.update(self.references(rollout, batch))
        return batch

    def _baseline(self, rollout: Rollout, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, T) what each token's return is compared with."""
        if self.args.baseline == "none":
            return torch.zeros_like(returns)
        if self.args.baseline == "learned":
            return rollout.made.values
        # the return of the whole response: a completion that is shorter has nothing more to come after its end
        whole = torch.where(torch.isnan(rollout.scores), torch.nan, returns[:, 0])
        everyone = self.accelerator.gather(whole)
        if self.args.baseline == "batch_mean":
            return torch.nanmean(everyone).nan_to_num(0.0).expand_as(returns)
        mine = slice(self.accelerator.process_index * len(whole), (self.accelerator.process_index + 1) * len(whole))
        return leave_one_out(everyone, self.num_generations)[mine].nan_to_num(0.0)[:, None].expand_as(returns)

    @in_pieces
    def update(self, model: Any, batch: Batch) -> torch.Tensor:
        """`lambda * (REINFORCE + baseline loss - entropy bonus) + (1 - lambda) * MLE of the reference`."""
        scores, extra = self.joint_scores(model, batch, "detached" if self.uses_values else "none")
        self.watch(batch, scores)
        log = self._metrics["train"]
        loss = self.mean_over_tokens(reinforce_loss(scores["log_probs"], batch["advantages"]), batch)
        log["policy_loss"].append(self.global_mean(-batch["advantages"] * scores["log_probs"], batch["learn_mask"]))
        if self.args.entropy_coef:
            loss = loss - self.args.entropy_coef * self.mean_over_tokens(scores["entropy"], batch)
        if self.uses_values:
            value_loss = 0.5 * (scores["values"] - batch["returns"]) ** 2
            loss = loss + self.args.baseline_coef * self.mean_over_tokens(value_loss, batch)
            self.watch_values(scores["values"], batch, value_loss)
        return loss if extra is None else self.blended(loss, extra, batch)
