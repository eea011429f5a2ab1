"""A reward on the test bench: the samples it is tried on, and how the checks call it."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from alignkit.errors import RewardError
from alignkit.reward import call_reward, learned_rewards, required_columns, reward_name, stateful_rewards
from alignkit.text import completion_text

PROMPTS = [
    "Tell me about the film.",
    "What do you think of the weather?",
    "How was the concert last night?",
    "Tell me about the film.",
    "Can you help me with my homework, please?",
    "Goodbye.",
]
COMPLETIONS = [
    " It was a wonderful story, and I loved every minute of it.",
    " Rain again. It is awful.",
    " Loud!",
    " The plot is dull, the actors are dull, the plot is dull.",
    " Of course. Please show me the first question, then we will look at it together, step by step.",
    " Bye, and thank you.",
]
REFERENCES = [
    "It was a good film.",
    "It rains too much.",
    "It was loud but great.",
    "The plot was boring.",
    "Yes, please show me the question.",
    "Bye.",
]

# Two computations of one score may differ by rounding: other padding, other kernels.
RELATIVE, ABSOLUTE = 1e-3, 1e-4


class NotApplicable(Exception):
    """A check that says nothing about this kind of reward."""


@dataclass
class Subject:
    """A reward with samples to try it on.

    Attributes:
        reward: the reward.
        prompts, completions: N each.
        columns: N values for each column that the reward requires, and any others.
        made_up: columns that were not given and hold sample texts.
    """

    reward: Any
    prompts: list = field(default_factory=lambda: list(PROMPTS))
    completions: list = field(default_factory=lambda: list(COMPLETIONS))
    columns: dict[str, list] = field(default_factory=dict)
    made_up: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        reward: Any,
        columns: dict[str, list] | None = None,
        prompts: list[str] | None = None,
        completions: list[str] | None = None,
    ) -> "Subject":
        """A subject with samples of the kit's own where none are given.

        Columns shorter than the samples are repeated to their length. Required columns that are not given hold texts.

        Raises:
            RewardError: an empty column, or prompts and completions of different number.
        """
        prompts, completions = list(prompts or PROMPTS), list(completions or COMPLETIONS)
        if len(prompts) != len(completions):
            raise RewardError(f"{len(prompts)} prompts, {len(completions)} completions: give pairs to check with")
        count = len(prompts)
        filled: dict[str, list] = {}
        for name, values in (columns or {}).items():
            if not len(values):
                raise RewardError(f"column '{name}' has no values to check with")
            filled[name] = [values[i % len(values)] for i in range(count)]
        made_up = tuple(name for name in required_columns(reward) if name not in filled)
        for name in made_up:
            filled[name] = [REFERENCES[i % len(REFERENCES)] for i in range(count)]
        return cls(reward, prompts, completions, filled, made_up)

    @property
    def name(self) -> str:
        """The reward's name in the log."""
        return reward_name(self.reward)

    def stateful(self) -> dict[str, Any]:
        """The objects with state inside the reward, by name; all rewards that learn are among them."""
        return stateful_rewards([self.reward])

    def learned(self) -> list[Any]:
        """The rewards inside that train along."""
        return learned_rewards([self.reward])

    def score(self, **changed: Any) -> list:
        """Scores of the samples; `reward`, `prompts`, `completions` or `columns` may be other ones."""
        subject = replace(self, **changed) if changed else self
        ids = word_ids(subject.completions)
        return call_reward(
            subject.reward, subject.prompts, subject.completions, columns=subject.columns, completion_ids=ids
        )

    def rows(self, indices: list[int]) -> dict[str, Any]:
        """Prompts, completions and columns of some samples, in that order."""
        return {
            "prompts": [self.prompts[i] for i in indices],
            "completions": [self.completions[i] for i in indices],
            "columns": {name: [values[i] for i in indices] for name, values in self.columns.items()},
        }


def word_ids(completions: list) -> list[list[int]]:
    """Stand-ins for token ids, one for each word, equal words alike."""
    numbers: dict[str, int] = {}
    return [[numbers.setdefault(w, len(numbers)) for w in completion_text(text).split()] for text in completions]


def same(one: Any, other: Any) -> bool:
    """Whether two scores agree up to rounding: None with None, lists element by element."""
    if one is None or other is None:
        return one is other
    if isinstance(one, list) or isinstance(other, list):
        return isinstance(one, list) and isinstance(other, list) and agree(one, other)
    return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def agree(one: list, other: list) -> bool:
    """Whether two lists of scores agree up to rounding."""
    return len(one) == len(other) and all(same(left, right) for left, right in zip(one, other, strict=True))
