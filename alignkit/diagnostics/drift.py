"""Monitors of where a run is heading: away from the reference, into repetition, or past what its reward means."""

from statistics import median

from alignkit.diagnostics.history import Finding, History, Limits, first_present

# Held-out figures whose better direction is known without being told.
_HIGHER_IS_BETTER = ("_positive_share",)
_LOWER_IS_BETTER = ("perplexity",)
_NAMED_HIGHER = ("eval_f1", "eval_bleu", "eval_accuracy")


def kl_in_bounds(history: History, limits: Limits) -> Finding | None:
    """The policy stays within reach of its reference, and the KL does not go below zero."""
    key = first_present(history, "kl_per_token", "kl")
    recent = history.newest(key, 3) if key else []
    if key is None or len(recent) < 3:
        return None
    step, now = history.points(key)[-1][0], median(recent)
    whole = history.newest("kl")[-1] if key == "kl_per_token" and "kl" in history else None
    size = f"{now:.2g} nats per token" + (f", {whole:.3g} per response" if whole is not None else "")
    if now > limits.kl_per_token:
        return Finding(
            "kl",
            "warn",
            f"The policy is far from its reference: KL {size}. Little of the original model is left; raise kl_coef, "
            "set kl_target, or lower the learning rate.",
            step,
        )
    negative = history.newest(key, limits.patience)
    if len(negative) == limits.patience and max(negative) < -limits.kl_at_start:
        return Finding(
            "kl",
            "warn",
            f"The KL has been negative for {limits.patience} log lines ({size}), which a KL cannot be: what is sampled "
            "is not what is scored. Check temperature, top_k, top_p and min_new_tokens.",
            step,
        )
    return Finding("kl", "ok", f"The policy stays near its reference: KL {size}.", step)


def entropy_in_bounds(history: History, limits: Limits) -> Finding | None:
    """The policy neither becomes deterministic nor noise."""
    pair = history.start_and_now("entropy")
    if pair is None:
        return None
    start, now = pair
    step = history.points("entropy")[-1][0]
    if start > 0 and now < limits.entropy_ratio * start:
        return Finding(
            "entropy",
            "warn",
            f"The policy has become nearly deterministic: its entropy fell from {start:.2g} to {now:.2g} nats per "
            "token. Exploration has ended; raise kl_coef or entropy_coef, or lower the learning rate.",
            step,
        )
    if start > 0 and now > limits.entropy_growth * start and now - start > 1:
        return Finding(
            "entropy",
            "warn",
            f"The policy turns to noise: its entropy rose from {start:.2g} to {now:.2g} nats per token. Lower the "
            "learning rate or entropy_coef, or raise kl_coef.",
            step,
        )
    return Finding("entropy", "ok", f"Entropy went from {start:.2g} to {now:.2g} nats per token.", step)


def diversity_holds(history: History, limits: Limits) -> Finding | None:
    """Completions for different prompts stay different."""
    # every evaluation takes the same prompts and seed, so two of them can be compared; batches need an average
    held_out = history.points("eval_distinct_2")
    pairs = {
        "on held-out prompts": (held_out[0][1], held_out[-1][1]) if len(held_out) > 1 else None,
        "in training": history.start_and_now("completions/distinct_2"),
    }
    known = {where: pair for where, pair in pairs.items() if pair is not None}
    if not known:
        return None
    step = history.step
    signs = [
        f"distinct-2 {where} fell from {start:.2f} to {now:.2f}"
        for where, (start, now) in known.items()
        if now < limits.diversity_ratio * start
    ]
    for name, words, allowed in (("duplicates", "duplicates rose", 0.1), ("self_bleu", "self-BLEU rose", 0.25)):
        seen = history.points(f"eval_{name}")
        if len(seen) > 1 and seen[-1][1] > seen[0][1] + allowed:
            signs.append(f"{words} from {seen[0][1]:.2f} to {seen[-1][1]:.2f}")
    seen = history.points("eval_repetition")
    if len(seen) > 1 and seen[-1][1] > seen[0][1] + 0.2:
        signs.append(f"repetition within a text rose from {seen[0][1]:.2f} to {seen[-1][1]:.2f}")
    if signs:
        return Finding(
            "diversity",
            "warn",
            f"Completions have become alike: {'; '.join(signs)}. Read a few samples: the policy may have found one "
            "answer that always pays. Raise kl_coef or entropy_coef, or reward variety.",
            step,
        )
    start, now = next(iter(known.values()))
    return Finding("diversity", "ok", f"Completions stay varied: distinct-2 {start:.2f} at first, {now:.2f} now.", step)


def length_holds(history: History, limits: Limits) -> Finding | None:
    """Completions keep about their length, and still end by themselves if they did."""
    pair = history.start_and_now("completions/mean_length")
    if pair is None:
        return None
    start, now = pair
    step = history.points("completions/mean_length")[-1][0]
    cut = history.start_and_now("completions/clipped_ratio")
    if cut is not None and cut[0] < 0.5 and cut[1] > 0.9:
        return Finding(
            "length",
            "warn",
            f"Completions no longer end by themselves: {cut[1]:.0%} run into the length limit, {cut[0]:.0%} did at "
            "first. The reward may pay for length; add a length reward, or give no score to unfinished text.",
            step,
        )
    if start > 0 and not 1 / limits.length_ratio <= now / start <= limits.length_ratio:
        return Finding(
            "length",
            "warn",
            f"The mean length went from {start:.3g} to {now:.3g} tokens. If that is not wanted, the reward pays for "
            "it: look at reward against length in the report, and weigh in a length reward.",
            step,
        )
    return Finding("length", "ok", f"Length went from {start:.3g} to {now:.3g} tokens on average.", step)


def held_out_follows_reward(history: History, limits: Limits) -> Finding | None:
    """What training never saw does not fall while the trained reward rises (Goodhart's law at work)."""
    measured = [key for key in history.keys() if held_out_direction(key)]  # noqa: SIM118  (not a mapping)
    compared = [key for key in measured if len(history.points(key)) >= 3]
    if not compared:
        return None
    step = max(history.points(key)[-1][0] for key in compared)
    for key in compared:
        sign = held_out_direction(key)
        points = history.points(key)
        best_at, best = max(points, key=lambda point: sign * point[1])
        later = [value for at, value in points if at > best_at]
        loss = sign * (best - median(later[-2:])) if later else 0.0
        allowed = limits.held_out_loss if sign > 0 else limits.perplexity_growth - 1
        rewards = _reward_at(history, best_at), _reward_at(history, points[-1][0])
        if len(later) < 2 or loss <= allowed * abs(best) or None in rewards:
            continue
        then, now = rewards
        if now > then:  # type: ignore[operator]
            return Finding(
                "held_out",
                "warn",
                f"The trained reward rose from {then:.3g} to {now:.3g} since step {best_at}, but "
                f"{key.removeprefix('eval_')}, which training does not see, went from {best:.3g} to {points[-1][1]:.3g}"
                f". The policy may be fooling its reward: take the checkpoint of step {best_at}, or raise kl_coef.",
                points[-1][0],
            )
    names = ", ".join(key.removeprefix("eval_") for key in compared)
    return Finding("held_out", "ok", f"Held-out measures do not fall while the reward rises ({names}).", step)


def held_out_direction(key: str) -> int:
    """1 where higher is better, -1 where lower is better, 0 where a key is no held-out measure with a direction."""
    if not key.startswith("eval_"):
        return 0
    if key.endswith(_HIGHER_IS_BETTER) or key in _NAMED_HIGHER:
        return 1
    return -1 if key.endswith(_LOWER_IS_BETTER) else 0


def _reward_at(history: History, step: int) -> float | None:
    points = history.points("eval_reward") or history.points("reward")
    until = [value for at, value in points if at <= step]
    return until[-1] if until else (points[0][1] if points else None)


def critic_explains(history: History, limits: Limits) -> Finding | None:
    """The value head predicts returns better than their mean would."""
    points = history.points("value/explained_variance")
    if len(points) < 4 * limits.patience:
        return None
    step, now = points[-1][0], median(history.newest("value/explained_variance", limits.patience))
    spread = history.start_and_now("reward_std")
    if spread is not None and spread[1] < 0.5 * spread[0]:
        # of a variance that has gone, nobody can explain a share
        return Finding("critic", "ok", "Rewards differ far less than at first; there is little left to predict.", step)
    if now < limits.explained_variance:
        return Finding(
            "critic",
            "warn",
            f"The value head predicts returns worse than their mean would (explained variance {now:.2f}). Raise "
            "vf_coef or the learning rate, warm the critic up (value_warmup_steps), or give it a trunk of its own "
            "(separate_critic).",
            step,
        )
    return Finding("critic", "ok", f"The value head explains {now:.0%} of the variance of returns.", step)


def updates_are_small(history: History, limits: Limits) -> Finding | None:
    """The passes over one rollout stay near the policy that sampled it."""
    moved, clipped = history.newest("approx_kl", limits.patience), history.newest("clip_ratio", limits.patience)
    if len(moved) < limits.patience and len(clipped) < limits.patience:
        return None
    step = history.step
    signs = []
    if moved and median(moved) > limits.approximate_kl:
        signs.append(f"the policy moves {median(moved):.2g} nats per token within one rollout")
    if clipped and median(clipped) > limits.clip_ratio:
        signs.append(f"{median(clipped):.0%} of the tokens hit the clip")
    if signs:
        return Finding(
            "update_size",
            "warn",
            f"Updates are too large: {' and '.join(signs)}. Lower the learning rate or num_iterations, or set "
            "target_kl_stop.",
            step,
        )
    return Finding("update_size", "ok", "Updates stay near the policy that sampled the completions.", step)


def weights_are_spread(history: History, limits: Limits) -> Finding | None:
    """Importance weights rest on more than a completion or two of each prompt."""
    shares, sizes = history.newest("ess/share", limits.patience), history.newest("ess", limits.patience)
    if len(shares) < limits.patience or len(sizes) < limits.patience:
        return None
    step, share, size = history.points("ess/share")[-1][0], median(shares), median(sizes)
    if round(size / share) == 1:  # one completion a prompt, which a policy gradient may have: nothing to be spread
        return None
    seen = f"the effective sample size is {size:.3g}, {share:.0%} of a prompt's completions"
    # of few completions one alone is a large share
    if share < limits.effective_share or (limits.effective_share and size < 1.1):
        return Finding(
            "weights_spread",
            "warn",
            f"Importance weights have collapsed: {seen}. A step rests on so few of them. Take a proposal closer to the "
            "target (more policy_share), raise weight_temperature or reward_temperature, set weight_clip, or raise "
            "num_generations.",
            step,
        )
    return Finding("weights_spread", "ok", f"Weights rest on many completions: {seen}.", step)
