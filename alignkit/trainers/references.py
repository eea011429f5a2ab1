"""The data's references beside a rollout's completions: as many different ones as the data have for a prompt."""

import json
import warnings
import zlib
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset

from alignkit.reward import learned_rewards
from alignkit.text import Text

_AT_A_TIME = 10_000


class References:
    """Which rows of the data answer a prompt. Keeps 16 bytes for each row, not its texts.

    Args:
        data: rows with a column `prompt`.
        column: that of the references.
    """

    def __init__(self, data: Dataset, column: str):
        parts = data.select_columns("prompt").iter(_AT_A_TIME)
        keys = np.fromiter((hash(_written(prompt)) for part in parts for prompt in part["prompt"]), np.int64, len(data))
        self._rows = np.argsort(keys, kind="stable")
        self._keys = keys[self._rows]
        self._texts, self._column = data.select_columns(column), column

    def drawn(self, groups: list[list[Text]], group: int, own: list[Any], seed: int) -> list[Any]:
        """A reference of its own prompt for each completion of one process.

        Completions to one prompt, in all processes together, get those of different rows in random order; where there
        are fewer rows, each comes equally often, or once less.

        Args:
            groups: the prompts of each process's completions.
            group: which of them is asked for.
            own: its completions' references as they stand, kept for prompts that are not in the data.
            seed: of the order.
        """
        mine = [_written(prompt) for prompt in groups[group]]
        earlier = Counter(_written(prompt) for part in groups[:group] for prompt in part)
        wanted = Counter(mine) + earlier + Counter(_written(prompt) for part in groups[group + 1 :] for prompt in part)
        orders = {prompt: self._order(prompt, wanted[prompt], seed) for prompt in set(mine)}
        places: list[int | None] = []
        for prompt in mine:
            rows = orders[prompt]
            places.append(int(rows[earlier[prompt] % len(rows)]) if len(rows) else None)
            earlier[prompt] += 1
        known = sorted({place for place in places if place is not None})
        texts = dict(zip(known, self._texts[known][self._column], strict=True)) if known else {}
        return [text if place is None else texts[place] for place, text in zip(places, own, strict=True)]

    def _order(self, prompt: str, count: int, seed: int) -> np.ndarray:
        """At most `count` of the rows that have the prompt."""
        low, high = (np.searchsorted(self._keys, hash(prompt), side) for side in ("left", "right"))
        rows = self._rows[low:high]
        random = np.random.default_rng([seed, zlib.crc32(prompt.encode())])
        return random.choice(rows, min(count, len(rows)), replace=False) if len(rows) > 1 else rows


class ReferencesMixin:
    """A rollout repeats each row of the data `num_generations` times, and with it its one reference.

    Where the data have one prompt with many texts (texts from nothing), a discriminator would be shown a handful of
    people's texts over and over beside hundreds of the policy's, and would learn these by heart; so would a likelihood
    beside the reward. They get texts of other rows with the same prompt instead. The draw depends on seed and step
    alone, so that a resumed run takes the same; a stream cannot be looked up, and its rows stay as they come.
    """

    @cached_property
    def _references(self: Any) -> References | None:
        data, column = self.train_dataset, self.args.reference_column
        known = isinstance(data, Dataset) and column in data.column_names
        return References(data, column) if known and self.num_generations > 1 else None

    def drawn_references(self: Any, prompts: list[Text], own: list[Any]) -> list[Any]:
        """A reference for each completion of this process. To be called by all processes together.

        Args:
            prompts: of this process's completions.
            own: what stands in their rows.
        """
        references = self._references
        if references is None:
            if not isinstance(self.train_dataset, Dataset):
                _warn_of_few(prompts, own, self.num_generations)
            return own
        groups = gather_object([prompts])
        seed = self.args.seed + self.state.global_step
        return references.drawn(groups, self.accelerator.process_index, own, seed)

    def renew_remembered(self: Any) -> None:
        """Put drawn references in the place of those that learned rewards remember of the completions they scored."""
        for reward in learned_rewards(self.rewards):
            prompts, completions, own = reward.pending()
            drawn = self.drawn_references(prompts, own)  # by a process, too, that has nothing to remember
            if prompts:
                reward.remember(prompts, completions, drawn)


def _warn_of_few(prompts: list[Text], own: list[Any], repeated: int) -> None:
    """Of a stream in which one prompt has several texts."""
    texts = Counter(map(_written, own))
    if repeated > 1 and len(set(map(_written, prompts))) < len(texts) < len(prompts):
        warnings.warn(
            f"the {len(prompts)} completions of one rollout have {len(texts)} references beside them, each "
            f"num_generations={repeated} times: a stream's other texts of the same prompt cannot be looked up. A "
            "learned reward may learn these few by heart; load the data whole, if they can be",
            stacklevel=2,
        )


def _written(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=repr)
