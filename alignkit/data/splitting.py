"""Held-out splits: always the same rows, and no text on both sides."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from alignkit.errors import DataError

# Not a setting: two runs with different seeds must hold out the same texts, or one would train on the other's test.
_SPLIT_SALT = "alignkit validation"


def held_out(keys: Sequence[Any], share: float) -> list[bool]:
    """Which rows belong to validation: those whose key has one of the lowest hashes.

    Rows with equal keys always go together, and the choice depends neither on the order of the rows nor on a seed.

    Args:
        keys: (N,) what makes rows belong together, such as their text.
        share: of the distinct keys, in (0, 1); at least one is held out and at least one is not.

    Raises:
        DataError: fewer than two distinct keys, or a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise DataError(f"the share held out for validation must lie between 0 and 1, got {share!r}")
    spelled = [key if isinstance(key, str) else json.dumps(key, sort_keys=True, default=str) for key in keys]
    distinct = set(spelled)
    if len(distinct) < 2:
        raise DataError(
            f"a split into train and validation needs at least 2 distinct rows, got {len(distinct)}; "
            "give more data, or a validation file of its own"
        )
    ranked = sorted(distinct, key=lambda key: hashlib.sha256(f"{_SPLIT_SALT}\n{key}".encode()).digest())
    chosen = set(ranked[: min(max(round(share * len(ranked)), 1), len(ranked) - 1)])
    return [key in chosen for key in spelled]


def hold_out(dataset: Dataset, share: float) -> DatasetDict:
    """Splits a data set that has no validation part; rows with the same prompt (else text, else row) stay together."""
    column = next((name for name in ("prompt", "text", "messages") if name in dataset.column_names), None)
    keys = dataset[column] if column else list(dataset)
    mask = held_out(keys, share)
    return DatasetDict(
        train=dataset.select([row for row, out in enumerate(mask) if not out]),
        validation=dataset.select([row for row, out in enumerate(mask) if out]),
    )


def limited(splits: DatasetDict, train_size: int | None, validation_size: int | None, seed: int) -> DatasetDict:
    """Shuffles both splits by `seed` and keeps at most so many rows; a smaller size gives a part of a larger one.

    Raises:
        DataError: a size below 1.
    """
    sizes = {"train": train_size, "validation": validation_size}
    result = {}
    for name, dataset in splits.items():
        size = check_size(f"{name}_size", sizes.get(name))
        shuffled = dataset.shuffle(seed=seed)
        result[name] = shuffled.select(range(min(size, len(dataset)))) if size else shuffled
    return DatasetDict(result)


def check_size(name: str, size: int | None, least: int = 1) -> int | None:
    """`size` itself; raises `DataError` when it is below `least`."""
    if size is not None and size < least:
        raise DataError(f"{name} must be at least {least}, got {size}")
    return size
