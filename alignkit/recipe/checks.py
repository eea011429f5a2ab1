"""Every mistake of a recipe, found at once and before anything is loaded.

Each function looks at one section and returns sentences. Names come from where they are defined: settings from the
config's fields, parameters from the signature of the reward, data set or metric.
"""

import dataclasses
import inspect
import typing
from typing import Any

from alignkit.errors import AlignkitError
from alignkit.recipe.extending import EXTENDS
from alignkit.recipe.kinds import TRAINERS, TrainerKind
from alignkit.settings import argument_problems, describe, did_you_mean, misfit, setting_problems

SECTIONS = ("trainer", "model", "data", "rewards", "training", "evaluation", "adapter", "quantization")
_LOADING_KEYS = {"dtype": str, "attn_implementation": str, "revision": str, "trust_remote_code": bool}
REFERENCE_KEYS = {"name": str, **_LOADING_KEYS}
MODEL_KEYS = {
    "name": str,
    "scratch": dict,
    "labels": list,
    "calibrate": bool,
    "pooling": str,
    "max_length": int,
    "reference": str | dict,
    **_LOADING_KEYS,
}
# Settings of the trainer `sft`, whose evaluation completes the beginnings of held-out texts, with their defaults.
COMPLETION_DEFAULTS = {"prompts": 64, "max_new_tokens": 48, "given_words": 6}
# Settings of `evaluation` that not every family of trainers has; any other trainer refuses them.
_OF_FAMILIES = {
    "max_new_tokens": ("sft", "seq2seq"),
    "given_words": ("sft",),
    "references": ("on_policy", "sft", "seq2seq"),
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
    "health": dict,
}
# A reward's entry holds its parameters and these two, which are the recipe's own.
REWARD_KEYS = ("use", "weight")
# A metric that is made of a reward holds that reward's parameters and these.
METRIC_REWARD_KEYS = ("reward", "positive_above")


def check_sections(content: dict[str, Any], allow_code: bool) -> list[str]:
    """The mistakes of a whole recipe, whose sections have been brought into their long form."""
    problems = [
        f"unknown key {key!r}{did_you_mean(key, (*SECTIONS, EXTENDS))}" for key in content if key not in SECTIONS
    ]
    for key in ("trainer", "model", "data"):
        if content.get(key) in (None, {}):
            problems.append(f"the key {key!r} is missing")
    kind = _kind(content.get("trainer"), problems)
    for section in SECTIONS[1:]:
        value = content.get(section)
        if value is not None and not isinstance(value, dict):
            problems.append(f"{section}: expected a mapping, got {describe(value)}")
            content = {**content, section: {}}
    problems += check_model(content.get("model") or {}, kind)
    problems += check_data(content.get("data") or {}, kind)
    problems += check_rewards(content.get("rewards") or {}, kind, allow_code)
    problems += check_evaluation(content.get("evaluation") or {}, kind, allow_code)
    problems += check_extras(content, kind)
    if kind is not None:
        problems += check_training(content.get("training") or {}, kind)
    return problems + ([] if allow_code else trusting(content))


def trusting(settings: Any, where: str = "") -> list[str]:
    """Where settings, however deeply nested, trust the Python code that a checkpoint brings along: a sentence each."""
    if isinstance(settings, list):
        return [problem for i, item in enumerate(settings) for problem in trusting(item, f"{where}[{i}]")]
    if not isinstance(settings, dict):
        return []
    problems = []
    for key, value in settings.items():
        place = f"{where}.{key}" if where else str(key)
        if key == "trust_remote_code" and value:
            problems.append(
                f"{place}: refused: it runs the Python code that a checkpoint brings along, and --no-code "
                "(allow_code=False) was given"
            )
        problems += trusting(value, place)
    return problems


def _kind(trainer: Any, problems: list[str]) -> TrainerKind | None:
    if trainer is None or trainer == {}:
        return None
    if not isinstance(trainer, str) or trainer not in TRAINERS:
        problems.append(f"trainer: there is no trainer {trainer!r}{did_you_mean(trainer, TRAINERS)}")
        return None
    return TRAINERS[trainer]


def check_model(model: dict[str, Any], kind: TrainerKind | None) -> list[str]:
    """`name` or `scratch`, and how to load it."""
    if not model:
        return []
    problems = setting_problems("the section", model, MODEL_KEYS, where="model")
    if ("name" in model) == ("scratch" in model):
        problems.append("model: give either a name (or folder) or `scratch` with the shape of a new model")
    if isinstance(model.get("scratch"), dict):
        from alignkit.models.from_scratch import generator_kind, spec_problems

        for_classifier = kind is not None and kind.family == "classifier"
        found = spec_problems(model["scratch"], "classifier" if for_classifier else generator_kind(model["scratch"]))
        problems += [f"model.scratch: {problem}" for problem in found]
    for key in ("labels", "max_length", "calibrate", "pooling"):
        if key in model and kind is not None and kind.family != "classifier":
            problems.append(f"model.{key}: only the trainer 'classifier' has it")
    reference = model.get("reference")
    if isinstance(reference, dict):
        problems += setting_problems("the section", reference, REFERENCE_KEYS, ["name"], where="model.reference")
    if reference is not None and kind is not None and kind.family != "on_policy":
        problems.append("model.reference: only trainers that sample have a reference model")
    return problems


def check_data(data: dict[str, Any], kind: TrainerKind | None) -> list[str]:
    """A known data set and its parameters; `ptx` holds a second one."""
    if not data:
        return []
    from alignkit.data import data_problems

    problems = []
    for where, spec in (("data", data), ("data.ptx", data.get("ptx"))):
        if spec is None:
            continue
        if not isinstance(spec, dict) or not isinstance(spec.get("use"), str):
            problems.append(f"{where}: expected a mapping with `use`, the name of a data set, got {describe(spec)}")
            continue
        settings = {key: value for key, value in spec.items() if key not in ("use", "ptx")}
        problems += [f"{where}: {problem}" for problem in data_problems(spec["use"], settings)]
    if "ptx" in data and kind is not None and kind is not TRAINERS["ppo"]:
        problems.append("data.ptx: only the trainer 'ppo' takes a second data set")
    return problems


def check_rewards(rewards: dict[str, Any], kind: TrainerKind | None, allow_code: bool) -> list[str]:
    """Names that resolve, parameters that the reward has, weights that are numbers."""
    problems = []
    if kind is not None and kind.family == "on_policy" and not rewards:
        problems.append("rewards: a trainer that samples needs at least one reward")
    if kind is not None and kind.family != "on_policy" and rewards:
        problems.append("rewards: this trainer learns from examples and takes no rewards")
    for name, spec in rewards.items():
        where = f"rewards.{name}"
        if not isinstance(spec, dict):
            problems.append(f"{where}: expected a mapping of its parameters, got {describe(spec)}")
            continue
        wrong = misfit(spec.get("weight", 1.0), float)
        if wrong:
            problems.append(f"{where}.weight: {wrong}")
        target = spec.get("use", name)
        if not isinstance(target, str):
            problems.append(f"{where}.use: expected the name of a reward, got {describe(target)}")
            continue
        given = {key: value for key, value in spec.items() if key not in REWARD_KEYS}
        problems += check_reward_parameters(where, target, given, allow_code, REWARD_KEYS)
    return problems


def check_reward_parameters(
    where: str, target: str, given: dict[str, Any], allow_code: bool, own: tuple[str, ...]
) -> list[str]:
    """Whether a reward exists and takes these parameters; it is not constructed. `own` are the entry's other keys.

    A composition is checked with the rewards inside it.
    """
    from alignkit.registry import find_reward
    from alignkit.registry.resolving import SUPPLIED

    try:
        found = find_reward(target, allow_code=allow_code)
    except AlignkitError as error:
        return [f"{where}: {error}"]
    if isinstance(found, type):
        parameters = inspect.signature(found).parameters
        problems = argument_problems(f"reward {target!r}", given, parameters, where=where, also=own)
        for place, name, settings in _inner_rewards(where, found, given):
            problems += check_reward_parameters(place, name, settings, allow_code, ("use",))
        return problems
    if given and inspect.isroutine(found):
        # what a function takes besides, `**columns`, are columns of the data and no settings
        keywords = {
            name: parameter
            for name, parameter in inspect.signature(found).parameters.items()
            if name not in SUPPLIED and parameter.kind is not parameter.VAR_KEYWORD
        }
        return argument_problems(f"reward {target!r}", given, keywords, demand=False, where=where, also=own)
    if given:
        return [f"{where}: reward {target!r} is a ready object and takes no parameters, got {', '.join(given)}"]
    return []


def _inner_rewards(where: str, outer: type, given: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Place, name and settings of each reward that stands in another's settings: `{use: NAME, ...}`, wherever it is, or
    the bare name where the outer one is a composition of `alignkit.compose`, which takes names."""
    takes_names = outer.__module__ == "alignkit.compose"
    found = []
    for key, value in given.items():
        listed = isinstance(value, list)
        for i, item in enumerate(value if listed else [value]):
            place = f"{where}.{key}" + (f"[{i}]" if listed else "")
            if isinstance(item, dict) and isinstance(item.get("use"), str):
                found.append((place, item["use"], {k: v for k, v in item.items() if k != "use"}))
            elif isinstance(item, str) and takes_names and key in ("reward", "rewards"):
                found.append((place, item, {}))
    return found


def check_evaluation(evaluation: dict[str, Any], kind: TrainerKind | None, allow_code: bool) -> list[str]:
    """Metrics that exist with parameters that they take, and how to sample for them."""
    from alignkit.metrics import METRICS, judges_by_reward, metric_parameters

    problems = setting_problems("the section", evaluation, EVALUATION_KEYS, where="evaluation")
    problems += _check_health(evaluation.get("health"))
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
            problems += argument_problems(f"metric {use!r}", given, metric_parameters(use), where=where)
            problems += _check_judge(f"{where}.reward", spec["reward"], allow_code) if "reward" in spec else []
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
            problems += argument_problems(f"metric {use!r}", given, metric_parameters(use), where=where)
    return problems


def _check_judge(where: str, reward: Any, allow_code: bool) -> list[str]:
    """The reward that a metric asks: its name, or `use` and its settings."""
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


def check_extras(content: dict[str, Any], kind: TrainerKind | None) -> list[str]:
    """`adapter` holds LoraConfig's fields, `quantization` BitsAndBytesConfig's parameters."""
    problems = []
    adapter, quantization = content.get("adapter"), content.get("quantization")
    if adapter is not None:
        from peft import LoraConfig

        problems += _check_fields("adapter", "LoraConfig", adapter, LoraConfig)
    if quantization is not None:
        from transformers import BitsAndBytesConfig

        # its **kwargs would swallow a misspelt setting
        parameters = inspect.signature(BitsAndBytesConfig).parameters
        named = {n: p for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        problems += argument_problems("BitsAndBytesConfig", quantization, named, where="quantization")
        if adapter is None:
            problems.append(
                "quantization: quantised weights do not train; add an adapter, for example adapter: {r: 16}"
            )
        if "scratch" in (content.get("model") or {}):
            problems.append("quantization: a model from scratch has nothing to quantise")
    if kind is not None and kind.family == "classifier" and (adapter is not None or quantization is not None):
        problems.append("adapter, quantization: the trainer 'classifier' trains the whole model")
    return problems


def check_training(training: dict[str, Any], kind: TrainerKind) -> list[str]:
    """Every setting is a field of the trainer's config and has its type."""
    config = kind.config_class()
    problems = _check_fields("training", config.__name__, training, config)
    if "reward_weights" in training:
        problems.append("training.reward_weights: weights stand with the rewards, for example rewards.length.weight")
    return problems


def _check_fields(where: str, owner: str, given: dict[str, Any], config: type) -> list[str]:
    hints = typing.get_type_hints(config)
    fields = {field.name: hints.get(field.name, Any) for field in dataclasses.fields(config) if field.init}
    return setting_problems(owner, given, fields, where=where, moved=getattr(config, "moved", {}))
