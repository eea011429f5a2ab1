"""Monitors of what must hold in any run, whatever it learns: arithmetic, sampling, gradients."""

import math
from typing import Any

from alignkit.diagnostics.history import Finding, History, Limits, first_present, is_number

# A run whose loss or gradient is not finite is broken; other keys may be missing a value for good reasons.
VITAL = ("loss", "grad_norm", "policy_loss", "value_loss", "kl", "entropy", "reward", "eval_loss", "eval_reward")


def finite_values(history: History, limits: Limits) -> Finding | None:
    """Every figure of the newest row is a finite number."""
    row = history.last
    bad = [key for key, value in row.items() if is_number(value) and not math.isfinite(value)]
    # trainers log None where a mean had nothing but nan in it; what has been a number must stay one
    bad += [key for key in VITAL if key in row and row[key] is None and key in history]
    if not any(is_number(value) for key, value in row.items() if key not in ("step", "epoch", "time")) and not bad:
        return None
    if not bad:
        return Finding("finite", "ok", "Every logged figure is a finite number.", history.step)
    names = ", ".join(sorted(bad)[:6])
    return Finding(
        "finite",
        "warn",
        f"Not a finite number: {names}. Lower the learning rate, set max_grad_norm, or train in float32; if only a "
        "held-out metric is concerned, look at what it measures.",
        history.step,
    )


def is_vital(row: dict[str, Any]) -> bool:
    """Whether a figure that training lives on is not finite in this row."""
    return any(
        key in row and (row[key] is None or (is_number(row[key]) and not math.isfinite(row[key]))) for key in VITAL
    )


def kl_at_start(history: History, limits: Limits) -> Finding | None:
    """At the first step the policy still is its reference."""
    points = history.points("kl_per_token") or history.points("kl")
    if not points or points[0][0] > 1:
        return None
    step, kl = points[0]
    if abs(kl) <= limits.kl_at_start:
        return Finding(
            "kl_at_start",
            "ok",
            f"Policy and reference began as one model (KL {abs(kl) if abs(kl) >= 1e-4 else 0:.2g} nats per token).",
            step,
        )
    return Finding(
        "kl_at_start",
        "warn",
        f"At the first step the KL to the reference is {kl:.3g} nats per token, though both should be the same model. "
        "Check that the reference is the model that training starts from, that dropout is off, and that temperature, "
        "top_k and top_p are what scoring assumes.",
        step,
    )


def sampling_matches_scoring(history: History, limits: Limits) -> Finding | None:
    """A token is as likely when it is scored as it was when it was sampled."""
    key = first_present(history, "sampling/logp_difference_mean", "sampling/sampling_logp_difference/mean")
    if key is None:
        return None
    step, gap = history.points(key)[-1]
    if gap <= limits.log_prob_gap:
        return Finding(
            "sampling", "ok", f"Sampling and scoring agree to {gap:.2g} nats per token on what is likely.", step
        )
    worst = history.newest("sampling/logp_difference_max") or history.newest("sampling/sampling_logp_difference/max")
    extreme = f" (at worst {worst[0]:.2g})" if worst else ""
    causes = "Usual causes:"
    if limits.eight_bits:
        causes = (
            "The base is quantised to 8 bits, the likely cause where this is below 0.1: a token is computed otherwise "
            "beside others than alone. See whether llm_int8_threshold: 0.0 in its quantization, or 4 bits, mends it. "
            "Other causes:"
        )
    return Finding(
        "sampling",
        "warn",
        f"Tokens are scored {gap:.2g} nats away{extreme} from how likely they were when sampled, so the policy ratio "
        f"is wrong from the start. {causes} no position ids under left padding, dropout, sampling filters such as "
        "top_k, or another engine or precision for sampling.",
        step,
    )


def reward_varies(history: History, limits: Limits) -> Finding | None:
    """Completions get different rewards: without a difference there is nothing to learn from."""
    spread = history.newest("reward_std", limits.patience)
    flat = history.newest("frac_reward_zero_std", limits.patience)
    rewards = history.newest("reward", limits.patience)
    if not spread or (len(spread) < limits.patience and history.length < limits.patience):
        return None
    step = history.points("reward_std")[-1][0]
    if len(spread) == limits.patience and max(spread) <= limits.reward_std:
        level = f" ({rewards[-1]:.3g})" if rewards else ""
        return Finding(
            "reward_variance",
            "warn",
            f"All completions of the last {limits.patience} log lines got the same reward{level}. If that is the "
            "highest there is, the task is solved; otherwise the reward tells nothing apart: score a few samples by "
            "hand with `alignkit rewards score`.",
            step,
        )
    if len(flat) == limits.patience and min(flat) >= 0.9:
        return Finding(
            "reward_variance",
            "warn",
            f"In {min(flat):.0%} of the groups or more, all completions of a prompt get the same reward, so they "
            "teach nothing. Sample more completions per prompt, raise the temperature, or take prompts of mixed "
            "difficulty.",
            step,
        )
    if max(spread) <= limits.reward_std:
        return None  # too early to say
    return Finding(
        "reward_variance", "ok", f"Rewards differ between completions (standard deviation {max(spread):.3g}).", step
    )


def weights_move(history: History, limits: Limits) -> Finding | None:
    """Training changes the weights."""
    deltas = history.points("weights/delta")
    gradients = history.newest("grad_norm", limits.patience)
    if history.updates < min(3, limits.patience):
        return None
    if deltas:
        step, delta = deltas[-1]
        if delta == 0 or (delta < limits.weights_delta and history.length > 4 * limits.patience):
            return Finding(
                "weights",
                "warn",
                f"The weights have {'not moved' if delta == 0 else f'hardly moved (by {delta:.1e})'} since the start. "
                "Check that parameters require gradients, that the optimiser has them, that the learning rate is not "
                "lost in 16-bit rounding, and that rewards differ.",
                step,
            )
        return Finding("weights", "ok", f"The weights have moved by {delta:.2g} of their size.", step)
    if len(gradients) < limits.patience:
        return None
    step = history.points("grad_norm")[-1][0]
    if max(gradients) == 0:
        return Finding(
            "weights",
            "warn",
            f"The gradient has been exactly 0 in the last {limits.patience} log lines: nothing is being learned. Check "
            "that rewards differ and that parameters require gradients.",
            step,
        )
    return Finding("weights", "ok", f"Gradients reach the weights (norm {gradients[-1]:.3g}).", step)
