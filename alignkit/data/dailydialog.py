"""DailyDialog (Li et al., 2017): everyday conversations of two people, with an emotion for each turn."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset, DatasetDict

from alignkit.data.dialogue import COLUMNS, Dialogue, Style, check_sizes, detokenized, split_rows
from alignkit.data.reading import read_named, rename, require_columns

HUB_ID = "OpenRL/daily_dialog"  # parquet; others carry a script, which `datasets` no longer runs
# as the corpus numbers them; the first says that none is expressed
EMOTIONS = ("", "anger", "disgust", "fear", "happiness", "sadness", "surprise")


def columns(**settings: Any) -> list[str]:
    """Always the same; raises `DataError` for numbers that cannot be meant."""
    check_sizes(settings)
    return COLUMNS


def load(
    turns: int = 2,
    style: Style = "text",
    reply_words: int | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Every turn but a dialogue's first is a reply to those before it. Spaces before punctuation are taken away.

    Args:
        turns: turns of context, at most.
        style: "text" ends each turn of the prompt with a newline; "messages" gives a list of messages.
        reply_words: leave out replies with more words.
        train_size: keep at most so many rows.
        validation_size: keep at most so many rows.
        seed: of the order of the rows.
    """
    settings = dict(locals())
    columns(**settings)
    train, validation = (_dialogues(read_named("dailydialog", split, HUB_ID), split) for split in _SPLITS)
    return split_rows(train, validation, "dailydialog", settings)


_SPLITS = ("train", "validation")


def _dialogues(raw: Dataset, split: str) -> Iterator[Dialogue]:
    source = f"dailydialog ({split})"
    if "dialog" in raw.column_names:
        raw = rename(raw, {"utterances": "dialog", "emotions": "emotion"}, source)
    require_columns(raw, ["utterances", "emotions"], source)
    for utterances, emotions in zip(raw["utterances"], raw["emotions"], strict=True):
        turns = [detokenized(text) for text in utterances]
        yield Dialogue(turns, [place > 0 for place in range(len(turns))], [EMOTIONS[number] for number in emotions])
