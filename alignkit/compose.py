"""Rewards made of rewards: a weighted sum, and transforms that are themselves rewards.

All of them pass on what they receive, require the columns that the rewards inside them require, keep `None` as "no
opinion" and can be pickled. Where a reward is expected they take a ready one, or its name, or
`{"use": name, **settings}`, so that a recipe can nest them:

    rewards:
      steady: {use: whiten, reward: {use: sentiment, model: my-classifier}}
"""

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

from alignkit.errors import RewardError
from alignkit.registry import load_reward
from alignkit.reward import call_reward, granularity, required_columns, reward_name, scalar_score, unique_names

Score = float | None | list[float]

# What call_reward takes by itself; everything else that a trainer passes is a column.
PASSED_ON = ("completion_ids", "trainer_state", "log_extra", "log_metric")


def as_reward(value: Any) -> Any:
    """A reward for a ready reward, a name, or a mapping with `use` and settings.

    Raises:
        RewardError: it is none of these, or `load_reward` refuses the name.
    """
    if isinstance(value, str):
        return load_reward(value)
    if isinstance(value, dict) and isinstance(value.get("use"), str):
        return load_reward(value["use"], **{key: item for key, item in value.items() if key != "use"})
    if callable(value):
        return value
    several = "; for several rewards there is WeightedSum(rewards, weights)" if isinstance(value, list | tuple) else ""
    raise RewardError(f"expected a reward, its name, or {{'use': name, ...settings}}; got {value!r}{several}")


def _score(reward: Any, name: str, prompts: list, completions: list, columns: dict[str, Any]) -> list[Score]:
    passed = {key: columns[key] for key in PASSED_ON if key in columns}
    rest = {key: value for key, value in columns.items() if key not in PASSED_ON}
    return call_reward(reward, prompts, completions, columns=rest, name=name, **passed)


class WeightedSum:
    """The weighted sum of several rewards as one reward.

    A reward without an opinion is left out of a completion's sum, as TRL leaves it out; where none has an opinion the
    sum is None. The mean of each part is logged as `<name>/<part>` where a trainer logs.

    Args:
        rewards: rewards, names or mappings, all of one granularity.
        weights: one number each; all 1 when left out.
        name: the name in the log.

    >>> from functools import partial
    >>> def longer(completions, unit, **columns): return [len(text) / unit for text in completions]
    >>> both = WeightedSum([partial(longer, unit=1), partial(longer, unit=4)], weights=[1, -2])
    >>> both(prompts=["a"], completions=["four"])
    [2.0]
    """

    def __init__(self, rewards: Iterable[Any], weights: Iterable[float] | None = None, name: str = "weighted_sum"):
        self.rewards = [as_reward(reward) for reward in rewards]
        self.weights = [1.0] * len(self.rewards) if weights is None else [float(weight) for weight in weights]
        self.__name__ = name
        if not self.rewards:
            raise RewardError("a WeightedSum needs at least one reward")
        if len(self.weights) != len(self.rewards):
            raise RewardError(f"{len(self.rewards)} rewards, {len(self.weights)} weights: give one weight per reward")
        if not all(math.isfinite(weight) for weight in self.weights):
            raise RewardError(f"weights are finite numbers, got {self.weights}")
        units = [granularity(reward) for reward in self.rewards]
        if len(set(units)) > 1:
            raise RewardError(
                f"a WeightedSum adds like to like, got granularities {', '.join(units)}; pass such rewards to the "
                "trainer side by side, with reward_weights"
            )
        self.granularity = units[0]

    @property
    def required_columns(self) -> list[str]:
        """The columns that any of the rewards requires."""
        return list(dict.fromkeys(column for reward in self.rewards for column in required_columns(reward)))

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[Score]:
        parts = []
        log_metric = columns.get("log_metric")
        for reward, name in zip(self.rewards, unique_names(self.rewards), strict=True):
            scores = _score(reward, name, prompts, completions, columns)
            parts.append(scores)
            known = [value for score in scores if (value := scalar_score(score)) is not None]
            if log_metric is not None and known:
                log_metric(f"{self.__name__}/{name}", sum(known) / len(known))
        return self.combine(parts)

    def combine(self, parts: list[list[Score]]) -> list[Score]:
        """The N scores from those of each reward, N each."""
        totals: list[Score] = [None] * len(parts[0])
        for scores, weight in zip(parts, self.weights, strict=True):
            totals = [_add(total, score, weight) for total, score in zip(totals, scores, strict=True)]
        return totals


def _add(total: Score, score: Score, weight: float) -> Score:
    if score is None:
        return total
    scaled = [weight * value for value in score] if isinstance(score, list) else weight * score
    if total is None:
        return scaled
    if isinstance(total, list) and isinstance(scaled, list):
        if len(total) != len(scaled):
            raise RewardError(f"two rewards disagree on a completion's parts: {len(total)} and {len(scaled)} scores")
        return [left + right for left, right in zip(total, scaled, strict=True)]
    return total + scaled  # type: ignore[operator]


class WeightedProduct(WeightedSum):
    """The product of several probabilities, each to the power of its weight, as one reward from 0 to 1.

    A reward without an opinion, or of weight 0, is left out (None where all are). Settings: `WeightedSum`'s, from 0 on.

    >>> def half(completions, **columns): return [0.5] * len(completions)
    >>> WeightedProduct([half, half], weights=[1, 2])(prompts=["a"], completions=["b"])
    [0.125]
    """

    def __init__(self, rewards: Iterable[Any], weights: Iterable[float] | None = None, name: str = "weighted_product"):
        super().__init__(rewards, weights, name)
        if min(self.weights) < 0:
            raise RewardError(f"a weight is the power of a probability and cannot be negative, got {self.weights}")

    def combine(self, parts: list[list[Score]]) -> list[Score]:
        products: list[Score] = []
        for scores in zip(*parts, strict=True):
            known = [(scalar_score(s), w) for s, w in zip(scores, self.weights, strict=True) if w and s is not None]
            wrong = [value for value, _ in known if not 0 <= value <= 1]  # type: ignore[operator]
            if wrong:
                raise RewardError(f"{self.__name__} multiplies probabilities from 0 to 1, and a reward gave {wrong[0]}")
            products.append(math.prod(value**weight for value, weight in known) if known else None)  # type: ignore
        return products


class _Transform:
    """One reward in, another out; subclasses say what happens to a number."""

    verb = ""

    def __init__(self, reward: Any):
        self.reward = as_reward(reward)
        self.granularity = granularity(self.reward)
        self.__name__ = f"{self.verb}_{reward_name(self.reward)}"

    @property
    def required_columns(self) -> list[str]:
        """The columns that the reward inside requires."""
        return required_columns(self.reward)

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[Score]:
        scores = _score(self.reward, reward_name(self.reward), prompts, completions, columns)
        return self.apply(scores)

    def apply(self, scores: list[Score]) -> list[Score]:
        """The transform of scores that are already there; None stays None."""
        return [_each(score, self.number) for score in scores]

    def number(self, value: float) -> float:
        """The transform of one number."""
        raise NotImplementedError


def _each(score: Score, change: Callable[[float], float]) -> Score:
    if isinstance(score, list):
        return [change(value) for value in score]
    return None if score is None else change(score)


class Checked(_Transform):
    """A reward under a name of choice, its every answer held against the contract: for trainers that do not do so.

    TRL's own trainers train on an infinite reward without a word, and log rewards of one name over each other; see
    `checked_rewards`.

    >>> Checked(Clip(len, low=0), name="size").__name__
    'size'
    """

    def __init__(self, reward: Any, name: str | None = None):
        super().__init__(reward)
        self.__name__ = name or reward_name(self.reward)

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[Score]:
        """What the reward inside gives, or an error that names it and the sample."""
        return _score(self.reward, self.__name__, prompts, completions, columns)


def checked_rewards(rewards: Iterable[Any]) -> list[Checked]:
    """Rewards for TRL's trainers: checked at every call, and under names that are taken once.

    >>> [reward.__name__ for reward in checked_rewards([len, len])]
    ['len', 'len_2']
    """
    rewards = [as_reward(reward) for reward in rewards]
    return [Checked(reward, name) for reward, name in zip(rewards, unique_names(rewards), strict=True)]


class Clip(_Transform):
    """A reward held between `low` and `high`; leave one out for no bound on that side.

    >>> Clip(len, low=1).apply([0.5, None, 3.0])
    [1.0, None, 3.0]
    """

    verb = "clip"

    def __init__(self, reward: Any, low: float | None = None, high: float | None = None):
        super().__init__(reward)
        if low is None and high is None:
            raise RewardError("Clip needs low, high or both")
        if low is not None and high is not None and not low < high:
            raise RewardError(f"Clip needs low < high, got low={low}, high={high}")
        self.low, self.high = low, high

    def number(self, value: float) -> float:
        """The nearest number within the bounds."""
        value = value if self.low is None else max(self.low, value)
        return float(value if self.high is None else min(self.high, value))


class Squash(_Transform):
    """A reward bent smoothly into a bounded range, so that extreme values do not rule the update.

    Args:
        reward: what to squash.
        kind: "tanh" gives (-1, 1), "sigmoid" gives (0, 1).
        center, scale: the function sees `(value - center) / scale`.

    >>> Squash(len, "sigmoid", center=2).apply([2.0, None])
    [0.5, None]
    """

    verb = "squash"

    def __init__(self, reward: Any, kind: str = "tanh", center: float = 0.0, scale: float = 1.0):
        super().__init__(reward)
        if kind not in ("tanh", "sigmoid"):
            raise RewardError(f"Squash knows 'tanh' and 'sigmoid', got {kind!r}")
        if not scale > 0:
            raise RewardError(f"Squash needs scale > 0, got {scale}")
        self.kind, self.center, self.scale = kind, center, scale

    def number(self, value: float) -> float:
        """tanh(z) or 1 / (1 + exp(-z)); the second is (1 + tanh(z/2)) / 2, which cannot overflow."""
        z = (value - self.center) / self.scale
        return math.tanh(z) if self.kind == "tanh" else 0.5 * (1 + math.tanh(z / 2))


class Whiten(_Transform):
    """A reward minus its running mean, over its running standard deviation.

    The statistics grow with every training batch, this one included, and stand still in evaluation (`eval()`). With
    several processes they cover the batches of all. They belong into the checkpoint: `state_dict` has them. While all
    values so far are equal there is no scale: the result is 0, or the value itself where `center` is False.

    Args:
        reward: what to whiten.
        center: subtract the mean. Leave False for per-token scores, where a constant per token rewards length.
        decay: None gives every past value the same weight; a number below 1 is the weight that the past keeps with
            each batch, so that the statistics follow a reward that drifts.

    Source of the merging step: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979), equation 2.1.

    >>> Whiten(len).apply([1.0, None, 3.0])
    [-1.0, None, 1.0]
    """

    verb = "whiten"
    training: bool = True

    def __init__(self, reward: Any, center: bool = True, decay: float | None = None):
        super().__init__(reward)
        if decay is not None and not 0 < decay < 1:
            raise RewardError(f"Whiten needs 0 < decay < 1 or None, got {decay}")
        self.center, self.decay = center, decay
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    @property
    def std(self) -> float:
        """The running (population) standard deviation."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def apply(self, scores: list[Score]) -> list[Score]:
        """Learns from the scores while training, then whitens them."""
        if self.training:
            flat = [v for s in scores if s is not None for v in (s if isinstance(s, list) else [s])]
            self._learn(flat)
        return super().apply(scores)

    def number(self, value: float) -> float:
        """The value in standard deviations; values that differ by rounding only count as equal."""
        deviation = self.std
        if deviation <= 1e-9 * max(1.0, abs(self.mean)):
            return 0.0 if self.center else value
        return (value - (self.mean if self.center else 0.0)) / deviation

    def _learn(self, values: list[float]) -> None:
        mean = sum(values) / len(values) if values else 0.0
        batches = _of_all_processes((float(len(values)), mean, sum((value - mean) ** 2 for value in values)))
        if self.decay is not None and any(count for count, _, _ in batches):
            self.count, self.squares = self.count * self.decay, self.squares * self.decay
        for count, mean, squares in batches:
            if not count:
                continue
            total = self.count + count
            gap = mean - self.mean
            self.squares += squares + gap**2 * self.count * count / total
            self.mean += gap * count / total
            self.count = total

    def train(self) -> "Whiten":
        """Lets the statistics grow again."""
        self.training = True
        return self

    def eval(self) -> "Whiten":
        """Holds the statistics still."""
        self.training = False
        return self

    def state_dict(self) -> dict[str, float]:
        """The running statistics."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Puts running statistics back."""
        self.count, self.mean, self.squares = (float(state[key]) for key in ("count", "mean", "squares"))


def _of_all_processes(batch: tuple[float, float, float]) -> list[tuple[float, float, float]]:
    """The statistics of every process's batch, in the same order everywhere."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [batch]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, batch)
    return gathered
