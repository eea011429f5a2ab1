"""`--dry-run`: all that can be found wrong without loading the model, and an honest word on what could not be seen.

Rewards are built and score a few rows, so the networks that they hold are loaded. The model to train, its reference and
the models of metrics are not: of these it sees configuration, tokenizer and the names of the weight files.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from transformers import AutoConfig, PretrainedConfig

from alignkit.data import DATASETS, known_columns
from alignkit.errors import DataError, ModelError
from alignkit.models.adapters import check_adapter
from alignkit.models.loading import has_weights, load_tokenizer
from alignkit.models.locating import resolve_model
from alignkit.models.precision import named_dtype
from alignkit.recipe import Recipe
from alignkit.reward import check_columns, required_columns, reward_name, unique_names
from alignkit.run.folder import earlier_run
from alignkit.run.ingredients import (
    Ingredients,
    build_chooser,
    build_metrics,
    build_reward,
    completed_columns,
    gather,
    judges_of,
    try_rewards,
)
from alignkit.run.memory import Held, held, shapes, stored
from alignkit.run.models import (
    SOURCE_OPTIONS,
    adapter_config,
    loading_options,
    named_models,
    quantization_config,
    recipe_that_writes,
    reference_options,
)
from alignkit.whole_files import check_writable

_FEW = 64  # rows of a data set that a model makes


class DryRun:
    """Notes what was checked and what could not be, and prints it.

    Args:
        recipe: to check.
        config: its trainer's config.
    """

    def __init__(self, recipe: Recipe, config: Any):
        self.recipe = recipe
        self.config = config
        self.unchecked: list[str] = []
        self.configs: dict[str, PretrainedConfig] = {}  # of the models that are here, by where the recipe names them

    def passed(self, what: str) -> None:
        """A line for something that is right."""
        print(f"  ok         {what}")

    def skipped(self, what: str) -> None:
        """A line for something that is not here to be checked."""
        self.unchecked.append(what)
        print(f"  unchecked  {what}")

    def data(self, allow_code: bool) -> Ingredients | None:
        """Data, columns, rewards and metrics; None where the data are not on this machine."""
        recipe = self.recipe
        settings = {key: value for key, value in recipe.data.items() if key not in ("use", "ptx")}
        slow = DATASETS[recipe.data["use"]].slow
        if slow:
            few = {name: min(settings.get(name) or _FEW, _FEW) for name in ("train_size", "validation_size")}
            recipe = dataclasses.replace(recipe, data={**recipe.data, **few})
        try:
            found = gather(recipe, allow_code)
        except DataError as error:
            if not isinstance(error.__cause__, ConnectionError | ModelError):
                raise
            self.skipped(f"data {recipe.data['use']}: {error}")
            rewards = [build_reward(name, spec, allow_code) for name, spec in recipe.rewards.items()]
            metrics = build_metrics(recipe, rewards, allow_code)
            chooser = build_chooser(recipe, rewards, allow_code)
            columns = known_columns(recipe.data["use"], **settings)
            if columns is not None:
                check_columns(rewards, columns)
                check_columns(judges_of(metrics, chooser), completed_columns(recipe, columns))
                self.passed(f"columns: {', '.join(columns)}; rewards need {_needs(rewards)}")
            return None
        sizes = ", ".join(f"{name} {len(part)}{' looked at' * slow}" for name, part in found.data.items())
        columns = found.data["train"].column_names
        self.passed(f"data {recipe.data['use']}: {sizes} rows; columns {', '.join(columns)}")
        if found.rewards:
            self.passed(f"rewards {', '.join(unique_names(found.rewards))}; they need {_needs(found.rewards)}")
        if found.metrics:
            self.passed(f"metrics {', '.join(found.metrics)}")
        if found.chooser is not None:
            self.passed(f"decoder {found.chooser.name}, which asks {reward_name(found.chooser.reward)}")
        return found

    def models(self) -> dict[str, bool]:
        """The model and those that rewards and metrics name: configuration, tokenizer and weight files, if here."""
        if "scratch" in self.recipe.model:
            self.passed("model: from scratch")
        here = {where: self._model(where, name) for where, name in named_models(self.recipe).items()}
        if "model" in self.configs and self.recipe.kind.family != "classifier":
            self.passed(f"memory: {foretell(self.recipe, self.config, self.configs).sentence()}")
        return here

    def _model(self, where: str, name: str) -> bool:
        try:
            folder = resolve_model(name)
        except ModelError as error:
            if Path(name).expanduser().exists():
                raise
            writer = recipe_that_writes(name)
            hint = f"; it is written by: alignkit train {writer}" if writer else ""
            self.skipped(f"{where}: {error}{hint}")
            return False
        if not Path(folder).is_dir() and is_offline_mode():
            self.skipped(f"{where}: {name!r} is not on this machine, and HF_HUB_OFFLINE is set")
            return False
        if where.endswith(".tokenizer"):
            self.passed(f"{where}: {name}, tokenizer of {len(load_tokenizer(folder))}")
            return True
        if (Path(folder) / "adapter_config.json").is_file():
            self.passed(f"{where}: {name} is an adapter")
            return True
        if Path(folder).is_dir() and not has_weights(folder):
            raise ModelError(f"{where}: the model folder {folder!r} has no weights (no *.safetensors)")
        options = {"model": loading_options, "model.reference": reference_options}.get(where, lambda recipe: {})
        source = {key: value for key, value in options(self.recipe).items() if key in SOURCE_OPTIONS}
        config = AutoConfig.from_pretrained(folder, **source)
        tokenizer = load_tokenizer(folder, **source)
        self.passed(f"{where}: {name}, type {config.model_type}, tokenizer of {len(tokenizer)}")
        self.configs[where] = config
        return True


def foretell(recipe: Recipe, config: Any, configs: dict[str, PretrainedConfig]) -> Held:
    """What training will hold, from the shapes of the weights.

    Args:
        recipe: of a language model that is loaded by name.
        config: its trainer's config.
        configs: of `model`, and of `model.reference` where the recipe names one that is here.

    Raises:
        ModelError: a precision that there is not, or an adapter that fits no layer.
    """
    options = {**loading_options(recipe), **(getattr(config, "model_init_kwargs", None) or {})}
    model = _shapes(configs["model"], options)
    adapter = adapter_config(recipe)
    check_adapter(model, adapter)
    learned = getattr(config, "baseline", None) == "learned"
    found = held(
        model,
        optim=str(getattr(config.optim, "value", config.optim)),
        optim_args=config.optim_args,
        adapter=adapter,
        quantization=quantization_config(recipe),
        values=recipe.trainer == "ppo" or learned,
        separate_critic=getattr(config, "separate_critic", False),
        reference=recipe.kind.family == "on_policy",
    )
    if "reference" not in recipe.model:
        return found
    options, other = reference_options(recipe), configs.get("model.reference")
    size = None if other is None else stored(_shapes(other, options), options.get("quantization_config"))
    return dataclasses.replace(found, reference=size)


def _shapes(config: PretrainedConfig, options: dict[str, Any]) -> Any:
    dtype = options.get("dtype") or "float32"
    known = config.dtype or torch.float32 if dtype == "auto" else named_dtype(dtype)
    return shapes(config, known, trust_remote_code=bool(options.get("trust_remote_code")))


def dry_run(recipe: Recipe, config: Any, allow_code: bool = True) -> list[str]:
    """Checks a recipe without training or loading the model, and prints what was found.

    Args:
        recipe: checked already; here it meets the machine.
        config: its trainer's config, built already.
        allow_code: whether rewards may be named as `file.py:Object`.

    Returns:
        what could not be checked because it is not on this machine.

    Raises:
        AlignkitError: the first thing that would stop the run.
    """
    print(f"{recipe.source}: dry run of trainer {recipe.trainer}")
    check = DryRun(recipe, config)
    check_writable(recipe.output_dir, "training.output_dir")
    if occupied := earlier_run(recipe.output_dir):
        print(f"  note       {occupied}")
    check.passed(f"recipe: {type(config).__name__} takes all settings; the run would go to {recipe.output_dir}")
    found = check.data(allow_code)
    here = check.models()
    if found is not None and recipe.kind.family == "on_policy":
        pairs = zip(recipe.rewards, found.rewards, strict=True)
        needs = ("", ".tokenizer")
        ready = [reward for name, reward in pairs if all(here.get(f"rewards.{name}{one}", True) for one in needs)]
        try_rewards(recipe, config, found, ready)
        if ready:
            self_named = ", ".join(unique_names(ready))
            check.passed(f"contract: {self_named} scored {min(4, len(found.data['validation']))} held-out rows")
    print(f"{len(check.unchecked)} not checked" if check.unchecked else "everything that a dry run can see is right")
    return check.unchecked


def _needs(rewards: list[Any]) -> str:
    needed = list(dict.fromkeys(column for reward in rewards for column in required_columns(reward)))
    return ", ".join(needed) or "no further columns"
