"""Short reviews of films and meals, written by a grammar of our own: nothing to download, the same on every machine.

Every text is a neutral opening and an opinion, and half of the opinions are positive; a language model trained on them
is positive half of the time, which is what PPO is then to change. Held-out openings never occur in train, in any form.
"""

import random
from typing import Any, Literal

from datasets import Dataset, DatasetDict

from alignkit.data.grammar import continuation, expand
from alignkit.data.reading import check_splits
from alignkit.data.splitting import check_size, held_out
from alignkit.errors import DataError

_SHARE = 0.1
# The openings are always drawn alike, so that which ones are held out depends on no setting.
_OPENINGS = 20000
_MOST = {"train": 16000, "validation": 1600}

Form = Literal["prompts", "classification", "text"]


def columns(form: Form = "prompts", **settings: Any) -> list[str]:
    """The columns of each form; raises `DataError` for numbers that cannot be meant."""
    for split, most in _MOST.items():
        size = check_size(f"{split}_size", settings.get(f"{split}_size"))
        if size is not None and size > most:
            raise DataError(f"quickstart gives at most {most} rows of {split}, got {split}_size={size}")
    return {"prompts": ["prompt", "reference"], "classification": ["text", "label"], "text": ["text"]}[form]


def load(
    form: Form = "prompts",
    train_size: int = 6000,
    validation_size: int = 500,
    seed: int = 0,
) -> DatasetDict:
    """Reviews in one of three forms.

    Args:
        form: "prompts" gives prompt (the opening) and reference (an opinion, with a space in front); "text" gives
            opening and opinion as one text; "classification" gives text and label (0 negative, 1 positive), where every
            other text is the opinion alone, as a reward sees a completion.
        train_size: number of rows, at most 16000.
        validation_size: number of rows, at most 1600.
        seed: of the opinions and of the order of the rows, not of the split.
    """
    columns(form, train_size=train_size, validation_size=validation_size)
    by_split = _openings()
    splits = {}
    taken: set[str] = set()
    for split, size in (("train", train_size), ("validation", validation_size)):
        rng = random.Random(f"quickstart {seed} {split}")
        openings = rng.sample(by_split[split], size)
        rows: list[dict[str, Any]] = []
        for number, opening in enumerate(openings):
            label = number % 2
            opinion = continuation(opening, label, rng)
            if form == "prompts":
                rows.append({"prompt": opening, "reference": opinion})
            elif form == "text":
                rows.append({"text": opening + opinion})
            elif number % 4 < 2:
                rows.append({"text": opening + opinion, "label": label})
            else:
                # Opinions are fewer than openings: draw until there is one that no row has.
                while opinion in taken:
                    opinion = continuation(opening, label, rng)
                taken.add(opinion)
                rows.append({"text": opinion.strip(), "label": label})
        splits[split] = Dataset.from_list(rows)
    return check_splits(DatasetDict(splits), "quickstart")


def _openings() -> dict[str, list[str]]:
    rng = random.Random("quickstart openings")
    distinct: dict[str, None] = {}
    while len(distinct) < _OPENINGS:
        distinct[expand("opening", rng)] = None
    openings = list(distinct)
    mask = held_out(openings, _SHARE)
    return {
        "train": [text for text, out in zip(openings, mask, strict=True) if not out],
        "validation": [text for text, out in zip(openings, mask, strict=True) if out],
    }
