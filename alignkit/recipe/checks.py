"""Every mistake of a recipe, found at once and before anything is loaded.

Each function looks at one section and returns sentences. Names come from where they are defined: settings from the
config's fields, parameters from the signature of the reward, data set or metric.
"""

import dataclasses
import inspect
import typing
from typing import Any

from alignkit.recipe.evaluation_checks import check_evaluation
from alignkit.recipe.extending import EXTENDS
from alignkit.recipe.kinds import TRAINERS, TrainerKind
from alignkit.recipe.reward_checks import check_rewards
from alignkit.settings import argument_problems, describe, did_you_mean, setting_problems

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
    problems += check_evaluation(content.get("evaluation") or {}, kind, allow_code, content.get("rewards") or {})
    problems += check_greedy(content)
    problems += check_extras(content, kind)
    if kind is not None:
        problems += check_training(content.get("training") or {}, kind)
    if (content.get("training") or {}).get("proposal") == "own":
        problems.append("training.proposal: 'own' is a decoder passed to the trainer in Python; no recipe has one")
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


def check_greedy(content: dict[str, Any]) -> list[str]:
    """A decoder that chooses among samples needs samples that differ."""
    from alignkit.decoding.choosing import greedy_problem

    evaluation, training = content.get("evaluation") or {}, content.get("training") or {}
    given = (evaluation.get("temperature"), training.get("eval_temperature"), training.get("temperature"))
    found = greedy_problem(evaluation.get("decoder"), next((one for one in given if one is not None), None))
    return [f"evaluation.decoder: {found}"] if found else []


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
