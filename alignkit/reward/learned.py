"""Rewards that train along, such as the discriminator of a GAN, and whatever else a checkpoint must carry.

A trainer owns neither their optimiser nor their data: one callback (`alignkit.trainers`) feeds `update`, saves
`state_dict` in every checkpoint and restores it on resume. Adversarial training is then the ordinary trainer plus that
callback.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from alignkit.errors import MissingColumnError, RewardCallError
from alignkit.reward.contract import inner_rewards, reward_name, unique_names, unwrap


class LearnedReward(ABC):
    """A reward that learns during the run.

    `__call__` scores like any reward and must not learn: it is called for evaluation too. What it scores while
    `training` is remembered (with the data's `reference` beside it, or None) until a callback hands it to `update`,
    which takes one learning step from it.

    Attributes:
        training: True while the policy trains, False during evaluation; `train()` and `eval()` set it.
        reference_column: the data column that holds the references; alignkit's trainers set it to theirs.
        learns: whether `update` changes what it scores; False where its settings freeze it, so that what it says before
            and after training is one measure.
        needs_references: whether an update can do nothing without them, so that data that have none are refused.
        scores_only: set by commands that never train: a part that is new must be refused then, its scores are chance.
    """

    training: bool = True
    learns: bool = True
    needs_references: bool = False
    scores_only: bool = False
    reference_column: str = "reference"
    _pending: tuple[list, list, list] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Trainers of other libraries call the object itself, so the memory sits around `__call__`, not in a trainer.
        super().__init_subclass__(**kwargs)
        if "__call__" in cls.__dict__:
            cls.__call__ = _remembering(cls.__call__)  # type: ignore[method-assign]

    @abstractmethod
    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """Scores each completion; see `alignkit.reward.Reward`."""

    @abstractmethod
    def update(self, prompts: list, completions: list, references: list) -> dict[str, float]:
        """Learns from completions of the policy and from the references that stand beside them.

        Args:
            prompts, completions: what the policy was asked and what it wrote, in the form in which `__call__` saw it.
                With several processes, each has a copy of the reward and gets what all of them scored, in the same
                order, with torch's global generator in the same state: copies that begin equal stay equal.
            references: the texts that the data give for the same prompts, of equal number; None where they give none.

        Returns:
            What to log: plain floats under short names, such as `{"loss": 0.31, "accuracy": 0.84}`.
        """

    def update_again(self, prompts: list, completions: list, references: list) -> None:
        """Learns once more from what the last `update` got, where a trainer asks for several updates on one sample.

        A reward that keeps earlier samples must not keep these twice, nor take them for earlier ones. By default it is
        `update`.
        """
        self.update(prompts, completions, references)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that `update` changes: weights, optimiser, counters, random state.

        Tensors, numbers, strings, lists and dictionaries only, so that it can be saved and loaded without running code.
        """

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""

    def remember(self, prompts: list, completions: list, references: list) -> None:
        """Keeps what was scored for the next update; does nothing during evaluation. `__call__` does it by itself.

        Raises:
            RewardCallError: the three lists differ in length.
        """
        if not len(prompts) == len(completions) == len(references):
            raise RewardCallError(
                f"{len(prompts)} prompts, {len(completions)} completions and {len(references)} references: expected "
                "one reference for each completion"
            )
        if self.training:
            kept = self._pending or ([], [], [])
            for mine, more in zip(kept, (prompts, completions, references), strict=True):
                mine.extend(more)
            self._pending = kept

    def pending(self) -> tuple[list, list, list]:
        """Prompts, completions and references remembered since the last call, which forgets them."""
        kept, self._pending = self._pending or ([], [], []), None
        return kept

    @property
    def has_pending(self) -> bool:
        """Whether anything was remembered since the last update."""
        return self._pending is not None

    def train(self) -> "LearnedReward":
        """Says that the policy is training. Returns itself."""
        self.training = True
        return self

    def eval(self) -> "LearnedReward":
        """Says that the policy is being evaluated. Returns itself."""
        self.training = False
        return self


def _remembering(score: Callable[..., Any]) -> Callable[..., Any]:
    """`__call__` with a memory for what it scored in training; once is enough where a subclass calls its parent's."""
    if getattr(score, "_remembers", False):
        return score

    @functools.wraps(score)
    def call(self: LearnedReward, prompts: list, completions: list, **columns: Any) -> Any:
        nested = self.__dict__.get("_scoring", False)
        self.__dict__["_scoring"] = True
        try:
            scores = score(self, prompts, completions, **columns)
        finally:
            self.__dict__["_scoring"] = nested
        if not nested:
            references = columns.get(self.reference_column) or [None] * len(completions)
            self.remember(prompts, completions, references)
        return scores

    call._remembers = True  # type: ignore[attr-defined]
    return call


@contextmanager
def in_evaluation(rewards: Iterable[Any]) -> Iterator[None]:
    """Inside, rewards that learn or keep running statistics stand still; afterwards they are as they were.

    What has `train()` and `eval()` is told so, wherever it sits inside compositions; other rewards have no modes.

    Args:
        rewards: any rewards, in training or not.
    """
    modes = [
        (reward, getattr(reward, "training", True))
        for reward in walk_rewards(rewards)
        if callable(getattr(reward, "train", None)) and callable(getattr(reward, "eval", None))
    ]
    for reward, _ in modes:
        reward.eval()
    try:
        yield
    finally:
        for reward, training in modes:
            if training:
                reward.train()


def walk_rewards(rewards: Iterable[Any]) -> list[Any]:
    """Every reward and every reward inside it, outermost first, each object once."""
    found: list[Any] = []
    queue = [unwrap(reward) for reward in rewards]
    while queue:
        reward = queue.pop(0)
        if any(reward is known for known in found):
            continue
        found.append(reward)
        queue = [*map(unwrap, inner_rewards(reward)), *queue]
    return found


def learned_rewards(rewards: Iterable[Any]) -> list[LearnedReward]:
    """The rewards that train along, those inside compositions and transforms too, each once."""
    return [reward for reward in walk_rewards(rewards) if isinstance(reward, LearnedReward)]


def check_references(rewards: Iterable[Any], available: Iterable[str], column: str) -> None:
    """Holds the column of references against those that the data have, before anything heavy is loaded.

    Raises:
        MissingColumnError: it is missing, and a reward cannot learn without it.
    """
    columns = list(available)
    for reward in learned_rewards(rewards):
        if reward.learns and reward.needs_references and column not in columns:
            raise MissingColumnError(
                f"reward '{reward_name(reward)}' learns from references, and there is no column '{column}'; the data "
                f"has: {', '.join(columns)}. Add it, or freeze a reward that is trained already (of a discriminator: "
                "updates: 0)"
            )


def stateful_rewards(rewards: Iterable[Any]) -> dict[str, Any]:
    """What a checkpoint must carry: every object with `state_dict` and `load_state_dict`, under a stable unique name.

    Learned rewards and transforms with running statistics are among them. Networks themselves are not: a frozen reward
    model is found again by its name, not by a copy in every checkpoint. The rewards as given come first, then what is
    inside them, so that none of them loses its name to a part of another.
    """
    given = [unwrap(reward) for reward in rewards]
    stateful = [
        reward
        for reward in [*given, *walk_rewards(given)]
        if callable(getattr(reward, "state_dict", None))
        and callable(getattr(reward, "load_state_dict", None))
        and not hasattr(reward, "named_parameters")
    ]
    stateful = [reward for i, reward in enumerate(stateful) if not any(reward is one for one in stateful[:i])]
    return dict(zip(unique_names(stateful), stateful, strict=True))
