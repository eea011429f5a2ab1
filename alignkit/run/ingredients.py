"""Rewards, data and metrics of a recipe, built and checked against each other before any model is loaded."""

import copy
import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict

from alignkit.data import load_data
from alignkit.decoding.choosing import Chooser
from alignkit.decoding.log_scores import check_probabilities
from alignkit.decoding.sampling import Decoder
from alignkit.errors import ConfigError
from alignkit.recipe import Recipe, read_rewards
from alignkit.recipe.evaluation_checks import DECODER_KEYS, METRIC_REWARD_KEYS
from alignkit.recipe.reward_checks import REWARD_KEYS
from alignkit.registry import load_reward
from alignkit.reward import (
    call_reward,
    check_columns,
    check_references,
    granularity,
    in_evaluation,
    learned_rewards,
    reward_name,
    unique_names,
)
from alignkit.text import is_conversational

_TRIED = 4


@dataclass
class Ingredients:
    """What a run is made of, apart from the model.

    Attributes:
        data: splits `train` and `validation`.
        rewards: in the order of the recipe, their log names as the recipe names them.
        metrics: name -> `evaluate.Metric`.
        ptx: the second data set, or None.
        chooser: what completes held-out prompts; None where they are plain samples.
    """

    data: DatasetDict
    rewards: list[Any] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    ptx: DatasetDict | None = None
    chooser: Chooser | None = None

    def decoder(self, processing_class: Any) -> Decoder | None:
        """What completes held-out prompts by a model with this tokenizer; None for plain sampling."""
        return None if self.chooser is None else self.chooser.decoder(processing_class)


def gather(recipe: Recipe, allow_code: bool = True) -> Ingredients:
    """Loads data, rewards and metrics.

    Raises:
        AlignkitError: data that cannot be read, a reward that cannot be built or needs a column that is not there.
    """
    data = load_recipe_data(recipe)
    rewards = [build_reward(name, spec, allow_code) for name, spec in recipe.rewards.items()]
    metrics = build_metrics(recipe, rewards, allow_code)
    chooser = build_chooser(recipe, rewards, allow_code)
    for part in data.values():
        check_columns(rewards, part.column_names)
    check_references(rewards, data["train"].column_names, "reference")
    check_columns(judges_of(metrics, chooser), completed_columns(recipe, data["validation"].column_names))
    ptx = recipe.data.get("ptx")
    return Ingredients(data, rewards, metrics, load_data(**ptx) if ptx else None, chooser)


def build_chooser(recipe: Recipe, rewards: Sequence[Any], allow_code: bool = True) -> Chooser | None:
    """What `evaluation.decoder` says, its reward built, or one of the recipe's rewards, which may learn.

    Raises:
        ConfigError: a reward that learns, of which nobody would update this copy.
    """
    spec = recipe.evaluation.get("decoder")
    if spec is None:
        return None
    reward, _ = asked_reward("evaluation.decoder.reward", spec["reward"], recipe, rewards, allow_code)
    return Chooser(spec["use"], reward, {key: value for key, value in spec.items() if key not in DECODER_KEYS})


def judges_of(metrics: dict[str, Any], chooser: Chooser | None) -> list[Any]:
    """The rewards that evaluation asks: those of metrics, and what the decoder chooses by."""
    return [
        *(metric.reward for metric in metrics.values() if hasattr(metric, "reward")),
        *([] if chooser is None else [chooser.reward]),
    ]


def completed_columns(recipe: Recipe, columns: Sequence[str]) -> list[str]:
    """The columns of the rows that evaluation completes, of data with these."""
    if recipe.kind.family != "sft":
        return list(columns)
    return [*columns, "reference"] if "prompt" in columns else ["prompt", "reference"]


def try_rewards(recipe: Recipe, config: Any, found: Ingredients, ready: list[Any] | None = None) -> None:
    """Has each reward score a few rows of the held-out data, their references as completions.

    A reward that raises or answers what it must not is found here, not after the model has been loaded.

    Args:
        recipe: with the weights of its rewards.
        config: the trainer's, which may take scores for probabilities.
        found: rewards and data.
        ready: those of the rewards to try; all of them when None.

    Raises:
        RewardCallError, RewardValueError: names the reward and the sample.
    """
    part = found.data["validation"]
    rows = [part[i] for i in range(min(_TRIED, len(part)))]
    prompts = [row["prompt"] for row in rows]
    completions = [row.get("reference") or row.get("completion") or "" for row in rows]
    if is_conversational(prompts[0]) and isinstance(completions[0], str):
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "completion")}
    rewards = found.rewards if ready is None else ready
    reward_as = getattr(config, "reward_as", "exponential")
    weights = dict(zip(map(id, found.rewards), recipe.reward_weights, strict=True))
    with in_evaluation(rewards):
        for name, reward in zip(unique_names(rewards), rewards, strict=True):
            # no token ids: what wrote these texts is not known yet
            if granularity(reward) != "token":
                scores = call_reward(reward, prompts, completions, columns=columns, name=name)
                if reward_as != "exponential" and weights[id(reward)]:
                    check_probabilities(scores, completions, name, reward_as)


def load_recipe_data(recipe: Recipe) -> DatasetDict:
    """The recipe's data, the held-out split cut to `evaluation.prompts`."""
    data = load_data(**{key: value for key, value in recipe.data.items() if key != "ptx"})
    count = recipe.evaluation.get("prompts")
    if count is not None:
        data["validation"] = data["validation"].select(range(min(count, len(data["validation"]))))
    return data


def build_reward(name: str, spec: dict[str, Any], allow_code: bool = True) -> Any:
    """One entry of a recipe's `rewards`: an object whose log name is what the recipe calls it."""
    target = spec.get("use", name)
    settings = {key: value for key, value in spec.items() if key not in REWARD_KEYS}
    reward: Any = load_reward(target, allow_code=allow_code, **settings)
    if "use" in spec or (":" not in name and reward_name(reward) != name):
        # a copy: a function or a ready object is shared with whoever else loads it
        reward = functools.partial(reward) if inspect.isroutine(reward) else copy.copy(reward)
        reward.__name__ = name
    return reward


def build_named_rewards(entries: Sequence[str], allow_code: bool = True) -> list[Any]:
    """The rewards that a command line names to score with, see `read_rewards`; a `weight` changes no score."""
    specs = read_rewards(entries, allow_code=allow_code)
    rewards = [build_reward(name, spec, allow_code) for name, spec in specs.items()]
    for reward in learned_rewards(rewards):
        reward.scores_only = True
    return rewards


def build_metrics(recipe: Recipe, rewards: Sequence[Any], allow_code: bool = True) -> dict[str, Any]:
    """The metrics of `evaluation`. The trained rewards are measured anyway: `reward` adds nothing to them.

    A `perplexity` that names no model asks the run's starting model.

    Raises:
        ConfigError: a metric would ask a reward that learns, of which nobody would update this copy.
    """
    from alignkit.metrics import judges_by_reward, load_metric

    metrics: dict[str, Any] = {}
    for name, spec in recipe.evaluation.get("metrics", {}).items():
        use = spec.get("use", name)
        settings = {key: value for key, value in spec.items() if key not in ("use", *METRIC_REWARD_KEYS)}
        if judges_by_reward(use):
            judging, trained = asked_reward(f"evaluation.{name}.reward", spec["reward"], recipe, rewards, allow_code)
            own = {key: value for key, value in spec.items() if key not in ("use", "reward")}
            metrics[name] = load_metric(use, **{"name": name, **own, "reward": judging})
            metrics[name].per_row = not trained
        elif "reward" in spec:
            reward = load_reward(spec["reward"], allow_code=allow_code, **settings)
            above = spec.get("positive_above")
            metrics[name] = load_metric("reward", reward=reward, name=name, positive_above=above)
        elif use != "reward":
            if use == "perplexity":
                start = recipe.model.get("reference", recipe.model).get("name")
                settings = {"model": start, **settings}
            metrics[name] = load_metric(use, **settings)
    return metrics


def asked_reward(
    where: str, spec: str | dict[str, Any], recipe: Recipe, rewards: Sequence[Any], allow_code: bool = True
) -> tuple[Any, bool]:
    """The reward that a metric or a decoder asks, and whether it is one of the recipe's own.

    Args:
        where: for messages.
        spec: its name, which may be that of one of the recipe's rewards; or `use` and its settings.
        recipe: the recipe.
        rewards: its rewards, built.
        allow_code: whether names may import code.

    Raises:
        ConfigError: a reward that learns, of which nobody would update this copy.
    """
    own = dict(zip(recipe.rewards, rewards, strict=True))
    if isinstance(spec, str) and spec in own:
        return own[spec], True
    settings = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "use"}
    reward = load_reward(spec if isinstance(spec, str) else spec["use"], allow_code=allow_code, **settings)
    if learned_rewards([reward]) and "model" not in settings:
        raise ConfigError(
            f"{where}: {reward_name(reward)} learns, and this copy of it would know nothing. Name "
            f"one of the recipe's rewards ({', '.join(own) or 'it has none'}), or say as model where a saved one is"
        )
    return reward, False
