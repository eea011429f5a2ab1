"""EmpatheticDialogues (Rashkin et al., 2019): a speaker tells a listener of a situation, under one of 32 emotions.

The speaker is the user, and the listener's turns are the replies to learn, unless it is the user who is to be learned.
"""

from collections.abc import Iterator
from typing import Any, Literal

from datasets import Dataset, DatasetDict

from alignkit.data.dialogue import COLUMNS, Dialogue, Style, check_sizes, split_rows
from alignkit.data.reading import check_splits, read_named, require_columns
from alignkit.data.splitting import limited

HUB_ID = "Estwld/empathetic_dialogues_llm"
POSITIVE = (
    *("anticipating", "caring", "confident", "content", "excited", "faithful", "grateful", "hopeful", "impressed"),
    *("joyful", "prepared", "proud", "trusting"),
)
NEGATIVE = (
    *("afraid", "angry", "annoyed", "anxious", "apprehensive", "ashamed", "devastated", "disappointed", "disgusted"),
    *("embarrassed", "furious", "guilty", "jealous", "lonely", "sad", "terrified"),
)
EITHER = ("nostalgic", "sentimental", "surprised")

Form = Literal["replies", "situations"]
Replies = Literal["listener", "speaker", "both"]


def columns(form: Form = "replies", **settings: Any) -> list[str]:
    """The columns of each form; raises `DataError` for numbers that cannot be meant."""
    check_sizes(settings)
    return {"replies": COLUMNS, "situations": ["text", "label", "emotion"]}[form]


def load(
    form: Form = "replies",
    replies: Replies = "listener",
    turns: int = 2,
    style: Style = "text",
    prompt_words: int | None = None,
    reply_words: int | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Replies of listeners, or the situations that speakers wrote, with a sentiment.

    Args:
        form: "replies" gives what all dialogues give; "situations" gives text, emotion and label, 1 for the 13 emotions
            that are pleasant and 0 for the 16 that are not; nostalgic, sentimental and surprised ones are left out.
        replies: whose turns are replies; "speaker" gives what a user says next, for a simulated user to learn.
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
    raw = {"train": read_named("empathetic_dialogues", "train", HUB_ID)}
    raw["validation"] = read_named("empathetic_dialogues", "validation", HUB_ID, hub_split="valid")
    if form == "situations":
        return _situations(raw, train_size, validation_size, seed)
    train, validation = (_dialogues(dataset, split, replies) for split, dataset in raw.items())
    return split_rows(train, validation, "empathetic_dialogues", settings)


def _dialogues(raw: Dataset, split: str, whose: Replies) -> Iterator[Dialogue]:
    source = f"empathetic_dialogues ({split})"
    require_columns(raw, ["emotion"], source)
    for row in raw:
        row = _as_conversation(row, source, raw)
        turns = [" ".join(text.replace("_comma_", ",").split()) for text in row["utterances"]]
        replies = [whose in (party, "both") for party in row["speakers"]]
        yield Dialogue(turns, replies, ["" if party == "listener" else row["emotion"] for party in row["speakers"]])


def _as_conversation(row: Any, source: str, raw: Dataset) -> dict[str, Any]:
    """A row with `utterances` and `speakers`, as the hub's `conversations` have them or not."""
    if "conversations" not in row:
        require_columns(raw, ["utterances", "speakers"], source)
        return row
    said = row["conversations"]
    speakers = ["speaker" if turn["role"] == "user" else "listener" for turn in said]
    return {**row, "utterances": [turn["content"] for turn in said], "speakers": speakers}


def _situations(raw: dict[str, Dataset], train_size: int | None, validation_size: int | None, seed: int) -> DatasetDict:
    label = dict.fromkeys(POSITIVE, 1) | dict.fromkeys(NEGATIVE, 0)
    seen: set[str] = set()
    splits = {}
    for split in ("validation", "train"):
        require_columns(raw[split], ["situation", "emotion"], f"empathetic_dialogues ({split})")
        rows = {}
        for text, emotion in zip(raw[split]["situation"], raw[split]["emotion"], strict=True):
            text = " ".join(text.replace("_comma_", ",").split())
            if text and emotion in label and text not in seen:
                rows[text] = {"text": text, "label": label[emotion], "emotion": emotion}
        seen |= rows.keys()
        splits[split] = Dataset.from_list(list(rows.values()))
    ordered = DatasetDict(train=splits["train"], validation=splits["validation"])
    return limited(check_splits(ordered, "empathetic_dialogues"), train_size, validation_size, seed)
