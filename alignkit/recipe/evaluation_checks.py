"""Mistakes in what a recipe says of evaluation: metrics, and how prompts are completed for them."""

from collections.abc import Iterable
from typing import Any

from alignkit.recipe.kinds import TRAINERS, TrainerKind
from alignkit.recipe.reward_checks import check_reward_parameters
from alignkit.settings import argument_problems, describe, did_you_mean, hints_of, misfit, setting_problems

# Settings of the trainer `sft`, whose evaluation completes the beginnings of held-out texts, with their defaults.
COMPLETION_DEFAULTS = {"prompts": 64, "max_new_tokens": 48, "given_words": 6}
# Settings of `evaluation` that not every family of trainers has; any other trainer refuses them.
_OF_FAMILIES = {
    "max_new_tokens": ("sft", "seq2seq"),
    "given_words": ("sft",),
    "references": ("on_policy", "sft", "seq2seq"),
    "decoder": ("on_policy", "sft", "seq2seq"),
}
# Settings of `evaluation` that belong to the model and the trainer of a run, not to how it is judged.
OWN_COMPLETION_KEYS = ("max_new_tokens", "given_words", "batch_size", "health")
EVALUATION_KEYS = {
    "metrics": object,
    "prompts": int,
    "max_new_tokens": int,
    "given_words": int,
    "seed": int,
    "references": bool,
    "temperature": float,
    "batch_size": int,
    "decoder": dict | None,
    "health": dict,
}
# A metric that is made of a reward holds that reward's parameters and these.
METRIC_REWARD_KEYS = ("reward", "positive_above")
# The entry of a decoder that chooses by a reward holds its settings and these.
DECODER_KEYS = ("use", "reward")


def check_evaluation(
    evaluation: dict[str, Any], kind: TrainerKind | None, allow_code: bool, names: Iterable[str] = ()
) -> list[str]:
    """Metrics that exist with parameters that they take, and how to complete prompts for them; `names` are those of the
    recipe's rewards."""
    from alignkit.metrics import METRICS, judges_by_reward

    problems = setting_problems("the section", evaluation, EVALUATION_KEYS, where="evaluation")
    problems += _check_health(evaluation.get("health"))
    problems += _check_decoder(evaluation.get("decoder"), names, allow_code)
    for key, families in _OF_FAMILIES.items():
        if key in evaluation and kind is not None and kind.family not in families:
            having = [repr(name) for name, one in TRAINERS.items() if one.family in families]
            problems.append(f"evaluation.{key}: only the trainer {' or '.join(having)} has it")
    for key in ("prompts", "max_new_tokens", "given_words", "batch_size"):
        if isinstance(evaluation.get(key), int | float) and evaluation[key] <= 0:
            problems.append(f"evaluation.{key}: expected a positive number, got {evaluation[key]}")
    if isinstance(evaluation.get("temperature"), int | float) and evaluation["temperature"] < 0:
        problems.append(
            f"evaluation.temperature: expected a number from 0 (greedy) on, got {evaluation['temperature']}"
        )
    metrics = evaluation.get("metrics") or {}
    if not isinstance(metrics, dict):
        return [*problems, f"evaluation.metrics: expected a list or a mapping, got {describe(metrics)}"]
    for name, spec in metrics.items():
        where = f"evaluation.{name}"
        if not isinstance(spec, dict):
            problems.append(f"{where}: expected a mapping of its parameters, got {describe(spec)}")
            continue
        use = spec.get("use", name)
        if isinstance(use, str) and judges_by_reward(use):
            given = {key: value for key, value in spec.items() if key != "use"}
            problems += _metric_problems(use, given, where)
            if "reward" in spec:
                problems += _check_judge(f"{where}.reward", spec["reward"], names, allow_code)
        elif "reward" in spec:
            if not isinstance(spec["reward"], str):
                problems.append(f"{where}.reward: expected the name of a reward, got {describe(spec['reward'])}")
                continue
            if (wrong := misfit(spec.get("positive_above"), float | None)) is not None:
                problems.append(f"{where}.positive_above: {wrong}")
            given = {key: value for key, value in spec.items() if key not in METRIC_REWARD_KEYS}
            problems += check_reward_parameters(where, spec["reward"], given, allow_code, METRIC_REWARD_KEYS)
        elif use != "reward" and use not in METRICS:
            problems.append(f"{where}: there is no metric {use!r}{did_you_mean(use, [*METRICS, 'reward'], 99)}")
        elif use in METRICS:
            given = {key: value for key, value in spec.items() if key != "use"}
            problems += _metric_problems(use, given, where)
    return problems


def _metric_problems(use: str, given: dict[str, Any], where: str) -> list[str]:
    from alignkit.metrics import metric_parameters

    taken = metric_parameters(use)
    return argument_problems(f"metric {use!r}", given, taken, hints=hints_of(taken), where=where)


def _check_decoder(spec: Any, names: Iterable[str], allow_code: bool) -> list[str]:
    """`evaluation.decoder`: what chooses, by which reward (one of the recipe's `names`, or another), settings."""
    from alignkit.decoding.choosing import CHOOSERS, chooser_problems

    where = "evaluation.decoder"
    if not isinstance(spec, dict):
        return []
    use = spec.get("use")
    if not isinstance(use, str):
        return [f"{where}: expected `use`, the name of a decoder ({', '.join(CHOOSERS)}); got {describe(use)}"]
    if use not in CHOOSERS:
        return [f"{where}.use: there is no decoder {use!r} that chooses by a reward{did_you_mean(use, CHOOSERS)}"]
    if "reward" not in spec:
        problems = [f"{where}: {use} chooses by a reward; name it, for example reward: {{use: sentiment, model: ...}}"]
    else:
        problems = _check_judge(f"{where}.reward", spec["reward"], names, allow_code)
    settings = {key: value for key, value in spec.items() if key not in DECODER_KEYS}
    return problems + chooser_problems(f"the decoder {use!r}", CHOOSERS[use], settings, where, also=DECODER_KEYS)


def _check_judge(where: str, reward: Any, names: Iterable[str], allow_code: bool) -> list[str]:
    """The reward that a metric or a decoder asks: its name, or that of one of the recipe's, or `use` and settings."""
    if isinstance(reward, str) and reward in names:
        return []
    spec = {"use": reward} if isinstance(reward, str) else reward
    if not isinstance(spec, dict) or not isinstance(spec.get("use"), str):
        return [f"{where}: expected the name of a reward or a mapping with `use`, got {describe(reward)}"]
    given = {key: value for key, value in spec.items() if key != "use"}
    return check_reward_parameters(where, spec["use"], given, allow_code, ("use",))


def _check_health(actions: Any) -> list[str]:
    from alignkit.diagnostics import CHECKS
    from alignkit.trainers.health import ACTIONS

    if not isinstance(actions, dict):
        return []
    problems = []
    for check, action in actions.items():
        if check not in CHECKS:
            problems.append(f"evaluation.health: there is no check {check!r}{did_you_mean(check, CHECKS, 99)}")
        if action not in ACTIONS:
            known = ", ".join(ACTIONS)
            problems.append(f"evaluation.health.{check}: expected one of {known}, got {describe(action)}")
    return problems
