"""DailyDialog (Li et al., 2017): everyday conversations of two people, with an emotion for each turn."""

from collections.abc import Iterator
from typing import Any, Literal

from datasets import Dataset, DatasetDict

from alignkit.data.dialogue import COLUMNS, Dialogue, Style, check_sizes, detokenized, split_rows
from alignkit.data.reading import check_splits, read_named, rename, require_columns
from alignkit.data.splitting import limited

HUB_ID = "OpenRL/daily_dialog"  # parquet; others carry a script, which `datasets` no longer runs
# as the corpus numbers them; the first says that none is expressed
EMOTIONS = ("", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
# surprise is either, and where no emotion is expressed there is none to name
SENTIMENT = {"happiness": 1, "anger": 0, "disgust": 0, "fear": 0, "sadness": 0}

Form = Literal["replies", "turns"]


def columns(form: Form = "replies", **settings: Any) -> list[str]:
    """The columns of each form; raises `DataError` for numbers that cannot be meant."""
    check_sizes(settings)
    return {"replies": COLUMNS, "turns": ["text", "label", "emotion"]}[form]


def load(
    form: Form = "replies",
    turns: int = 2,
    style: Style = "text",
    prompt_words: int | None = None,
    reply_words: int | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Replies, or single turns with a sentiment. Spaces before punctuation are taken away.

    Args:
        form: "replies" gives what all dialogues give, and every turn but a dialogue's first is a reply; "turns" gives
            text, emotion and label of the turns that express an emotion: 1 for happiness, 0 for anger, disgust, fear
            and sadness. Surprise is left out, and so is a text that comes with both labels.
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
    train, validation = (_dialogues(read_named("dailydialog", split, HUB_ID), split) for split in _SPLITS)
    if form == "turns":
        return _turns({"train": train, "validation": validation}, train_size, validation_size, seed)
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


def _turns(
    parts: dict[str, Iterator[Dialogue]], train_size: int | None, validation_size: int | None, seed: int
) -> DatasetDict:
    """Labelled turns, each text once; what is in validation is not in train."""
    seen: set[str] = set()
    splits = {}
    for split in ("validation", "train"):
        rows: dict[str, dict[str, Any]] = {}
        both: set[str] = set()
        for dialogue in parts[split]:
            for text, emotion in zip(dialogue.turns, dialogue.emotions, strict=True):
                key = text.lower()
                if not text or emotion not in SENTIMENT or key in seen:
                    continue
                row = rows.setdefault(key, {"text": text, "label": SENTIMENT[emotion], "emotion": emotion})
                both |= {key} if row["label"] != SENTIMENT[emotion] else set()
        seen |= rows.keys()
        splits[split] = Dataset.from_list([row for key, row in rows.items() if key not in both])
    ordered = DatasetDict(train=splits["train"], validation=splits["validation"])
    return limited(check_splits(ordered, "dailydialog"), train_size, validation_size, seed)
