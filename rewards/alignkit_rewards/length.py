"""How near a completion's length is to the one that is wanted."""

from collections.abc import Sequence
from typing import Any

from alignkit.errors import RewardError
from alignkit.text import completion_text
from alignkit_rewards.words import words

UNITS = ("words", "characters", "tokens")


class Length:
    """1 at the wanted length, less by 1 for every `tolerance` that it is off, never below `floor`.

    Range: [floor, 1].

    Args:
        target: the wanted length, or two numbers, between which every length is right.
        tolerance: how far off earns 0; by default the target itself (the lower of two).
        unit: "words", "characters", or "tokens" of the policy, which exist in training only.
        floor: the least that a length can earn.

    >>> Length(target=4)(prompts=[""] * 3, completions=["one two three four", "one two three", "one"])
    [1.0, 0.75, 0.25]
    >>> Length(target=[2, 4], tolerance=1)(prompts=[""] * 2, completions=["one two three", "one"])
    [1.0, 0.0]
    """

    __name__ = "length"

    def __init__(
        self,
        target: float | Sequence[float],
        tolerance: float | None = None,
        unit: str = "words",
        floor: float = -1.0,
    ):
        bounds = tuple(target) if isinstance(target, Sequence) else (target, target)
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
            raise RewardError(f"length: target is a number, or two with 0 <= low <= high; got {target!r}")
        if unit not in UNITS:
            raise RewardError(f"length: unit is one of {', '.join(UNITS)}; got {unit!r}")
        self.target, self.unit, self.floor = target, unit, floor
        self.tolerance = float(bounds[0] if tolerance is None else tolerance)
        if not self.tolerance > 0:
            raise RewardError(f"length: tolerance must be above 0, got {self.tolerance}; give one for a target of 0")
        if not floor < 1:
            raise RewardError(f"length: floor must be below 1, which the wanted length earns; got {floor}")
        self._low, self._high = bounds

    def __call__(
        self, prompts: list, completions: list, completion_ids: list[list[int]] | None = None, **columns: Any
    ) -> list[float]:
        """One number for each completion."""
        if self.unit == "tokens":
            if completion_ids is None:
                raise RewardError(
                    "length: tokens exist only while a model generates; to score text alone use unit='words' or "
                    "unit='characters'"
                )
            lengths = [len(ids) for ids in completion_ids]
        else:
            texts = [completion_text(completion) for completion in completions]
            lengths = [len(words(text)) if self.unit == "words" else len(text) for text in texts]
        return [self._score(length) for length in lengths]

    def _score(self, length: int) -> float:
        off = max(self._low - length, length - self._high, 0)
        return max(float(self.floor), 1.0 - off / self.tolerance)
