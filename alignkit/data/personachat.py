"""PersonaChat (Zhang et al., 2018), in the form of ConvAI2: two people get to know each other."""

from collections.abc import Iterator
from typing import Any, Literal

from datasets import Dataset, DatasetDict

from alignkit.data.dialogue import COLUMNS, Dialogue, Style, check_sizes, detokenized, split_rows
from alignkit.data.reading import read_named, require_columns

HUB_ID = "AlekseyKorshuk/persona-chat"

Replies = Literal["persona", "partner", "both"]


def columns(**settings: Any) -> list[str]:
    """Always the same; raises `DataError` for numbers that cannot be meant."""
    check_sizes(settings)
    return COLUMNS


def load(
    replies: Replies = "persona",
    turns: int = 2,
    style: Style = "text",
    prompt_words: int | None = None,
    reply_words: int | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Replies of the person who has the persona; no emotions are known. The text is in lower case.

    Args:
        replies: whose turns are replies; "partner" gives what the other party says next, which speaks first.
        turns: turns of context, at most.
        style: "text" ends each turn of the prompt with a newline; "messages" gives a list of messages.
        prompt_words: leave out replies to a context with more words.
        reply_words: leave out replies with more words.
        train_size: keep at most so many rows.
        validation_size: keep at most so many rows.
        seed: of the order of the rows.
    """
    settings = dict(locals())
    columns(**settings)
    train, validation = (_dialogues(read_named("personachat", split, HUB_ID), split, replies) for split in _SPLITS)
    return split_rows(train, validation, "personachat", settings)


_SPLITS = ("train", "validation")


def _dialogues(raw: Dataset, split: str, whose: Replies) -> Iterator[Dialogue]:
    require_columns(raw, ["utterances"], f"personachat ({split})")
    # validation holds every dialogue twice, once for each wording of its personas, which are not used here
    for utterances in raw["utterances"]:
        turns = [detokenized(text) for text in _spoken(utterances)]
        parties = [("partner", "persona")[place % 2] for place in range(len(turns))]
        yield Dialogue(turns, [whose in (party, "both") for party in parties], [""] * len(turns))


def _spoken(utterances: list[Any]) -> list[str]:
    """The turns, from a list of them or from the hub's form: what came before each reply, and replies to choose from,
    the true one last."""
    if utterances and isinstance(utterances[-1], dict):
        return [*utterances[-1]["history"], utterances[-1]["candidates"][-1]]
    return utterances
