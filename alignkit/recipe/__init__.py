"""A recipe: one YAML file that says what to train, on what, for which rewards.

Eight keys: `trainer, model, data, rewards, training, evaluation, adapter, quantization`, and `extends`, which names
another recipe. `training` is the trainer's own config, verbatim. A misspelt key is an error that names the nearest
known one, and all errors of a file come at once.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import RecipeError, RewardError
from alignkit.recipe.checks import SECTIONS, check_sections, trusting
from alignkit.recipe.extending import EXTENDS, merged, read_extended
from alignkit.recipe.kinds import TRAINERS, TrainerKind
from alignkit.recipe.reading import apply_overrides, dump_yaml, parse_yaml
from alignkit.recipe.reward_checks import check_rewards
from alignkit.settings import describe

__all__ = ["TRAINERS", "Recipe", "RecipeError", "TrainerKind", "load_recipe", "read_rewards"]


@dataclass
class Recipe:
    """A checked recipe, every section in its long form.

    Attributes:
        trainer: a name of `TRAINERS`.
        model: `name` or `scratch`, and how to load it; `reference` with the same keys.
        data: `use` and that data set's parameters; `ptx` for a second one.
        rewards: name -> parameters, with `weight` and, where the name is an alias, `use`.
        training: fields of the trainer's config; `output_dir` and `seed` are always there.
        evaluation: `metrics` (name -> parameters), and how to sample for them.
        adapter: fields of peft's LoraConfig, or None.
        quantization: parameters of BitsAndBytesConfig, or None.
        source: the file it was read from.
    """

    trainer: str
    model: dict[str, Any]
    data: dict[str, Any]
    rewards: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    source: str | None = None

    @property
    def kind(self) -> TrainerKind:
        """What the trainer's name stands for."""
        return TRAINERS[self.trainer]

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return Path(self.training["output_dir"])

    @property
    def reward_weights(self) -> list[float]:
        """One weight a reward, 1 where the recipe gives none."""
        return [float(spec.get("weight", 1.0)) for spec in self.rewards.values()]

    def config(self) -> Any:
        """The trainer's config.

        Raises:
            RecipeError: the config refuses a value or a combination.
        """
        settings = {**self._machine_settings(), **self.training}
        if self.kind.family == "on_policy":
            settings["reward_weights"] = self.reward_weights
            if "batch_size" in self.evaluation:
                settings["per_device_eval_batch_size"] = self.evaluation["batch_size"]
        if self.kind.own:
            for name in ("seed", "temperature", "references"):
                if name in self.evaluation:
                    settings[f"eval_{name}"] = self.evaluation[name]
        config_class = self.kind.config_class()
        try:
            with warnings.catch_warnings():
                # renamed settings of the hosts, which still work
                warnings.simplefilter("ignore", FutureWarning)
                config = config_class(**settings)
        except (ValueError, TypeError, ImportError, AssertionError) as error:
            raise RecipeError(
                [f"training: {config_class.__name__} refuses these settings: {error}"], self.source
            ) from error
        beta = getattr(config, "beta", 0.0)
        if self.kind.family == "on_policy" and beta and "scratch" in self.model and self.adapter is None:
            problem = (
                f"training.beta={beta:g}: for its KL, TRL's {self.trainer} loads the starting model again by its name, "
                "and one from scratch has none; set training.beta to 0, or train the model first and name its folder"
            )
            raise RecipeError([problem], self.source)
        return config

    def _machine_settings(self) -> dict[str, Any]:
        """What the hosts would have one write for a machine without a GPU; a recipe that says it itself wins."""
        import torch

        if torch.cuda.is_available() or torch.backends.mps.is_available():
            return {}
        if self.kind.own or self.kind.family == "classifier":
            return {"use_cpu": True}
        # TRL switches both on unless told otherwise
        return {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}

    def to_dict(self) -> dict[str, Any]:
        """The sections that hold something, in their order."""
        sections = {key: copy.deepcopy(getattr(self, key)) for key in SECTIONS}
        return {key: value for key, value in sections.items() if value not in (None, {})}

    def to_yaml(self, header: str = "") -> str:
        """The recipe as it was resolved: a file that `load_recipe` reads again. `header` becomes comment lines."""
        comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
        return comment + dump_yaml(self.to_dict())


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, allow_code: bool = True) -> Recipe:
    """Reads a recipe, applies `key=value` overrides, and checks all of it without loading a model or data.

    Args:
        path: the YAML file. It may extend another one, see `alignkit.recipe.extending`.
        overrides: dotted keys and YAML values, such as `training.max_steps=2`.
        allow_code: False refuses what runs code: rewards named as `path/to/file.py:Object` or
            `package.module:Object`, and `trust_remote_code`.

    Raises:
        RecipeError: with every mistake found.
    """
    content: dict[str, Any] = {}
    problems = []
    parts = read_extended(path)
    source = str(path) + "".join(f", which extends {file}" for file, _ in reversed(parts[:-1]))
    for file, part in parts:
        problems += _repeated(part)
        part = _long_form(part, with_nulls=True)
        if file is not parts[-1][0] and isinstance(part.get("training"), dict):
            part["training"].pop("output_dir", None)  # each recipe has a folder of its own
        content = merged(content, part)
    problems += apply_overrides(content, overrides)
    if content.pop(EXTENDS, None) is not None:
        problems.append("extends: stands in a recipe's file, and cannot be an override")
    content = _long_form(content)
    problems += check_sections(content, allow_code)
    if not isinstance(content.get("trainer"), str) or content["trainer"] not in TRAINERS:
        raise RecipeError(problems, source)
    known = {key: value for key, value in content.items() if key in SECTIONS and value is not None}
    recipe = Recipe(**{"model": {}, "data": {}, **known}, source=str(path))
    defaults = {"output_dir": str(default_output_dir(path)), "seed": 42, "report_to": "none"}
    if not any(problem.startswith(("training", "rewards", "evaluation")) for problem in problems):
        # settings that fit their types may still contradict each other: only the config knows
        recipe.training = {**defaults, **recipe.training}
        try:
            recipe.config()
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems, source)
    return recipe


def read_rewards(entries: Sequence[str], *, allow_code: bool = True) -> dict[str, dict[str, Any]]:
    """Rewards as a command line names them, in the long form of a recipe's section `rewards`.

    Args:
        entries: each what would stand in the list `rewards` of a recipe: a name, or a name with settings; or a mapping
            of `use` and settings.
        allow_code: as in `load_recipe`.

    Raises:
        RewardError: with every mistake found.

    >>> read_rewards(["repetition", "length: {target: 20}", "short: {use: length, target: 5}"])
    {'repetition': {}, 'length': {'target': 20}, 'short': {'use': 'length', 'target': 5}}
    """
    listed, problems = [], []
    for entry in entries:
        try:
            found = parse_yaml(entry)
        except yaml.YAMLError as error:
            problems.append(f"the reward {entry!r} is not valid YAML ({getattr(error, 'problem', error)})")
            continue
        if not isinstance(found, str | dict):
            problems.append(f"expected a reward, such as length or 'length: {{target: 20}}', got {describe(found)}")
            continue
        if isinstance(found, dict) and isinstance(found.get("use"), str):
            found = {found["use"]: found}  # as a composition writes what is inside it
        listed.append(found)
    rewards = _named(listed)
    problems += _repeated({"rewards": listed}) + check_rewards(rewards, None, allow_code)
    problems += [] if allow_code else trusting(rewards, "rewards")
    if problems:
        raise RewardError("; ".join(problems))
    return rewards


def default_output_dir(path: str | Path) -> Path:
    """Where a recipe's run goes unless `training.output_dir` says otherwise: its path below `recipes/`, in `runs/`.

    >>> str(default_output_dir("recipes/sentiment/ppo.yaml")), str(default_output_dir("mine.yaml"))
    ('runs/sentiment/ppo', 'runs/mine')
    """
    parts = Path(path).with_suffix("").parts
    below = parts[len(parts) - parts[::-1].index("recipes") :] if "recipes" in parts[:-1] else parts[-1:]
    return Path("runs", *below)


def _long_form(content: dict[str, Any], with_nulls: bool = False) -> dict[str, Any]:
    """Shorthands written out: `model: gpt2`, its `reference: gpt2`, `data: imdb`, `rewards: [length]` and so on; with
    `with_nulls` a name without anything behind it stays so, because in a recipe that extends another it removes."""
    content = copy.deepcopy(content)
    if isinstance(content.get("model"), str):
        content["model"] = {"name": content["model"]}
    model = content.get("model")
    if isinstance(model, dict) and isinstance(model.get("reference"), str):
        model["reference"] = {"name": model["reference"]}
    if isinstance(content.get("data"), str):
        content["data"] = {"use": content["data"]}
    if "rewards" in content:
        content["rewards"] = _named(content["rewards"], with_nulls)
    evaluation = content.get("evaluation")
    if isinstance(evaluation, list):
        evaluation = {"metrics": evaluation}
    if isinstance(evaluation, dict):
        metrics = evaluation.get("metrics", {})
        content["evaluation"] = {**evaluation, "metrics": _named(metrics, with_nulls) if metrics or with_nulls else {}}
    return content


def _repeated(content: dict[str, Any]) -> list[str]:
    """Names that stand twice in a list of rewards or metrics: of a mapping's keys the YAML reader says so itself."""
    evaluation = content.get("evaluation")
    metrics = evaluation.get("metrics") if isinstance(evaluation, dict) else evaluation
    problems = []
    for where, entries in (("rewards", content.get("rewards")), ("evaluation.metrics", metrics)):
        names = [
            name
            for entry in (entries if isinstance(entries, list) else [])
            for name in (entry if isinstance(entry, dict) else [entry])
        ]
        problems += [
            f"{where}: {name!r} stands twice; give one of them a name of its own, as in `{name}_2: {{use: {name}}}`"
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        ]
    return problems


def _named(entries: Any, with_nulls: bool = False) -> Any:
    """A list of names (or of one-key mappings) as a mapping; `name:` with nothing behind it has no parameters."""
    if isinstance(entries, list):
        found: dict[Any, Any] = {}
        for entry in entries:
            found.update(entry if isinstance(entry, dict) else {entry: {}})
        entries = found
    if isinstance(entries, dict):
        return {name: {} if spec is None and not with_nulls else spec for name, spec in entries.items()}
    return entries
