"""IMDB film reviews (Maas et al., 2011): openings to continue, labelled segments, or whole reviews.

The set has no validation part: a tenth of the reviews of its train part is held out, the same ones whatever the form
and the seed, so that a judge trained on segments never saw the reviews whose openings are held-out prompts. The test
part is left alone.
"""

import random
import re
from collections.abc import Callable
from typing import Any, Literal

from datasets import Dataset, DatasetDict

from alignkit.data.reading import check_splits, read_named, require_columns
from alignkit.data.splitting import check_size, held_out, limited
from alignkit.errors import DataError

HUB_ID = "stanfordnlp/imdb"
_SHARE = 0.1
_BREAKS = re.compile(r"<br\s*/?>", flags=re.I)

Form = Literal["prompts", "classification", "text"]


def columns(form: Form = "prompts", **settings: Any) -> list[str]:
    """The columns of each form; raises `DataError` for numbers that cannot be meant."""
    check_size("prompt_words", settings.get("prompt_words"))
    check_size("reference_words", settings.get("reference_words"))
    check_size("train_size", settings.get("train_size"))
    check_size("validation_size", settings.get("validation_size"))
    shortest, longest = settings.get("segment_words", (20, 60))
    if not 1 <= shortest <= longest:
        raise DataError(f"segment_words is (fewest, most) with 1 <= fewest <= most, got {shortest}, {longest}")
    return {"prompts": ["prompt", "reference", "label"], "classification": ["text", "label"], "text": ["text"]}[form]


def load(
    form: Form = "prompts",
    prompt_words: int = 8,
    reference_words: int = 24,
    distinct_prompts: bool = True,
    segment_words: tuple[int, int] = (20, 60),
    segments: Literal["opening", "anywhere"] = "anywhere",
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Film reviews in one of three forms; `<br />` marks become spaces and repeated reviews are dropped.

    Args:
        form: "prompts" gives prompt, reference, label; "classification" gives text, label; "text" gives whole reviews.
        prompt_words: prompts are the first so many words of a review.
        reference_words: references are the words that follow, with a space in front; shorter reviews are left out.
        distinct_prompts: no prompt twice in validation, and none there that is also in train.
        segment_words: texts for classification have (fewest, most) words, a length drawn evenly for each.
        segments: where those texts are cut from; "opening" is what a prompt and its continuation look like.
        train_size: keep at most so many rows.
        validation_size: keep at most so many rows.
        seed: of the order of the rows and of the cuts, not of the split.

    The label is 0 for a negative and 1 for a positive review; a segment has the label of its whole review.
    """
    columns(
        form=form,
        prompt_words=prompt_words,
        reference_words=reference_words,
        segment_words=segment_words,
        train_size=train_size,
        validation_size=validation_size,
    )
    raw = read_named("imdb", "train", HUB_ID)
    require_columns(raw, ["text", "label"], "imdb")
    reviews = {clean(text): int(label) for text, label in zip(raw["text"], raw["label"], strict=True)}
    texts = sorted(reviews)
    mask = held_out(texts, _SHARE)
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, wanted in (("train", False), ("validation", True)):
        own = [text for text, out in zip(texts, mask, strict=True) if out is wanted]
        rows: list[dict[str, Any]]
        if form == "prompts":
            rows = [opening(text, prompt_words, reference_words) | {"label": reviews[text]} for text in own]
            rows = [row for row in rows if row["reference"]]
        elif form == "classification":
            shortest, longest = segment_words
            rows = []
            for text in own:
                cut = segment(text, shortest, longest, segments, random.Random(f"{seed} {text}"))
                rows += [{"text": cut, "label": reviews[text]}] if cut else []
        else:
            rows = [{"text": text} for text in own]
        splits[split] = list({_identity(row): row for row in rows}.values())
    # Some reviews are copies of each other but for a few words, so that parts of them can be equal.
    splits["validation"] = _unseen(splits["validation"], splits["train"], _identity)
    if form == "prompts" and distinct_prompts:
        splits["validation"] = _unseen(splits["validation"], splits["train"], lambda row: row["prompt"])
    parts = DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})
    return limited(check_splits(parts, "imdb"), train_size, validation_size, seed)


def clean(text: str) -> str:
    """A review on one line, without `<br />`.

    >>> clean("Bad.<br /><br />Very  bad.")
    'Bad. Very bad.'
    """
    return " ".join(_BREAKS.sub(" ", text).split())


def opening(text: str, prompt_words: int, reference_words: int) -> dict[str, Any]:
    """The first words as prompt, the words after them as reference (empty when the text is too short for both).

    >>> opening("one two three four", 2, 1)
    {'prompt': 'one two', 'reference': ' three'}
    """
    words = text.split()
    following = words[prompt_words : prompt_words + reference_words]
    reference = " " + " ".join(following) if len(following) == reference_words else ""
    return {"prompt": " ".join(words[:prompt_words]), "reference": reference}


def segment(text: str, shortest: int, longest: int, where: str, rng: random.Random) -> str:
    """A run of words of the text, between `shortest` and `longest` of them; empty when the text is too short."""
    words = text.split()
    if len(words) < shortest:
        return ""
    length = rng.randint(shortest, min(longest, len(words)))
    start = 0 if where == "opening" else rng.randint(0, len(words) - length)
    return " ".join(words[start : start + length])


def _identity(row: dict[str, Any]) -> str:
    return row["text"] if "text" in row else row["prompt"] + row["reference"]


def _unseen(
    rows: list[dict[str, Any]], others: list[dict[str, Any]], key: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    """The rows whose key no other has, one for each key."""
    seen = {key(row) for row in others}
    return list({key(row): row for row in rows if key(row) not in seen}.values())
