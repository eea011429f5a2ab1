"""What a rollout tells the log: rewards, KL, lengths, and the completions table."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from alignkit.advantages import masked_mean
from alignkit.errors import HealthError
from alignkit.text import excerpt
from alignkit.trainers.rollout import Batch, Rollout

if TYPE_CHECKING:
    from alignkit.trainers.on_policy import OnPolicyTrainer


def check_log_probs(rollout: Rollout, other: list[list[float]] | None = None) -> None:
    """Stop where a log-probability is not finite: nothing sensible can be learned from it.

    Args:
        rollout: sampled and scored.
        other: what another engine (vLLM) reported, one list per completion, in nats; None where it knew no figure.

    Raises:
        HealthError: names the completion.
    """
    engine = None if other is None else _beside(rollout, other).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    seen = {"policy": rollout.made.log_probs, "reference": rollout.ref_log_probs, "sampling engine": engine}
    for name, values in seen.items():
        if values is None:
            continue
        bad = ~torch.isfinite(values) & rollout.made.completion_mask.bool()
        if bad.any():
            row = int(bad.any(1).nonzero()[0])
            raise HealthError(
                f"the {name} gives a log-probability that is not finite to completion {row} "
                f"({excerpt(rollout.completions[row])!r}, prompt {excerpt(rollout.prompts[row])!r}): its weights or "
                "logits hold inf or nan; lower the learning rate, or check the model that you loaded"
            )


def _beside(rollout: Rollout, reported: list[list[float]]) -> torch.Tensor:
    """An engine's log-probabilities in the shape of the completions, (B, T); NaN where it reported none."""
    values = torch.full(rollout.made.completion_mask.shape, torch.nan, device=rollout.made.completion_mask.device)
    for row, given in enumerate(reported):
        known = [torch.nan if value is None else value for value in given]
        values[row, : len(known)] = torch.tensor(known, device=values.device)
    return values


def log_rollout(trainer: "OnPolicyTrainer", rollout: Rollout) -> float:
    """Note a training rollout in the trainer's metrics and completions table.

    Returns:
        the mean KL per response over all processes, in nats.
    """
    log = trainer._metrics["train"]
    gather = trainer.accelerator.gather
    made = rollout.made
    lengths = gather(made.lengths()).float()
    kl = gather(rollout.kl.sum(1))
    rewards = gather(rollout.rewards)
    weights = trainer.reward_weights.to(rewards.device)
    known = ~torch.isnan(rewards)
    total = torch.where(known, rewards * weights, torch.zeros_like(rewards)).sum(1)
    total = torch.where(known.any(1), total, torch.nan)
    scored = total[known.any(1)]
    for index, name in enumerate(trainer.reward_func_names):
        column = rewards[:, index][known[:, index]]
        if len(column):  # no opinion on any of them is nothing to log
            log[f"rewards/{name}/mean"].append(_mean(column))
            log[f"rewards/{name}/std"].append(_std(column))
    if len(scored):
        log["reward"].append(_mean(scored))
        log["reward_std"].append(_std(scored))
        log["frac_reward_zero_std"].append(share_of_flat_groups(total, trainer.num_generations))
    log["kl"].append(_mean(kl))
    log["kl_per_token"].append(float(kl.sum() / lengths.sum().clamp(min=1)))
    log["completions/mean_length"].append(_mean(lengths))
    log["completions/min_length"].append(float(lengths.min()))
    log["completions/max_length"].append(float(lengths.max()))
    log["completions/clipped_ratio"].append(_share_cut_off(trainer, rollout))
    if trainer._vllm_log_probs is not None:
        log_engine_gap(trainer, rollout)
    prompt_tokens = gather(made.prompt_mask.sum())
    trainer.state.num_input_tokens_seen += int(prompt_tokens.sum() + lengths.sum())
    log["num_tokens"] = [trainer.state.num_input_tokens_seen]
    _log_table(trainer, rollout, rewards)
    return _mean(kl)


def log_engine_gap(trainer: "OnPolicyTrainer", rollout: Rollout) -> None:
    """Log how far a second engine's log-probabilities (vLLM's) lie from the policy's own, in nats per token."""
    made = rollout.made
    gap = (_beside(rollout, trainer._vllm_log_probs) - made.log_probs).abs()
    kept = made.completion_mask.bool() & torch.isfinite(gap)
    log = trainer._metrics["train"]
    log["sampling/sampling_logp_difference/mean"].append(trainer.global_mean(gap, kept))
    largest = torch.where(kept, gap, 0.0).max()
    log["sampling/sampling_logp_difference/max"].append(trainer.accelerator.gather(largest).max().item())


def log_advantages(trainer: "OnPolicyTrainer", batch: Batch) -> None:
    """Fill the completions table's column `advantage`: the mean over each completion's tokens, or, for a method without
    advantages, the sum of its rewards."""
    if "advantages" in batch:
        per_row = masked_mean(batch["advantages"], batch["learn_mask"], dim=1)
    else:
        per_row = batch["rewards"].sum(1)
    trainer._logs["advantages"].extend(trainer.accelerator.gather(per_row).tolist())


def _mean(values: torch.Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _std(values: torch.Tensor) -> float:
    return float(values.std()) if len(values) > 1 else 0.0


def share_of_flat_groups(scores: torch.Tensor, group_size: int) -> float:
    """Share of prompts whose completions all got the same reward; of the whole rollout where groups have one member.

    A prompt of which no completion has a score is left out; one with a single score has no spread to learn from.

    Args:
        scores: (B,) with B a multiple of `group_size`; NaN where no reward had an opinion. At least one is known.
        group_size: completions of one prompt, consecutive rows.
    """
    if group_size == 1:
        known = scores[~torch.isnan(scores)]
        return float(len(known) > 1 and bool(known.max() - known.min() < 1e-8))
    groups = [group[~torch.isnan(group)] for group in scores.view(-1, group_size)]
    flat = [bool(known.max() - known.min() < 1e-8) for known in groups if len(known)]
    return sum(flat) / len(flat)


def _share_cut_off(trainer: "OnPolicyTrainer", rollout: Rollout) -> float:
    """Share of completions that ran into the length limit without an end-of-sequence token."""
    ends = torch.tensor(trainer.eos_token_ids, device=rollout.made.completion_ids.device)
    made = rollout.made
    ended = (torch.isin(made.completion_ids, ends) & made.completion_mask.bool()).any(1)
    return _mean(trainer.accelerator.gather((~ended).float()))


def _log_table(trainer: "OnPolicyTrainer", rollout: Rollout, rewards: torch.Tensor) -> None:
    logs: dict[str, Any] = trainer._logs
    logs["prompt"].extend(gather_object(rollout.prompts))
    logs["completion"].extend(gather_object(rollout.completions))
    for index, name in enumerate(trainer.reward_func_names):
        logs["rewards"][name].extend(rewards[:, index].tolist())
    count = len(rollout.prompts)
    # every rank must gather the same columns in the same order
    for column in sorted(set(gather_object(list(trainer._pending_extra_logs)))):
        values = trainer._pending_extra_logs.get(column, [None] * count)
        logs["extra"][column].extend(gather_object(values))
    trainer._pending_extra_logs.clear()
    for name in sorted(set(gather_object(list(trainer._pending_metrics)))):
        given = trainer._pending_metrics.get(name, [])
        local = torch.tensor([sum(given), len(given)], dtype=torch.float32, device=trainer.accelerator.device)
        summed, number = trainer.accelerator.gather(local).view(-1, 2).sum(0).tolist()
        trainer._metrics["train"][name].append(summed / number)
    trainer._pending_metrics.clear()
