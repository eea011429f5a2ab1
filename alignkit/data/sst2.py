"""Stanford Sentiment Treebank, two classes (Socher et al., 2013), in the form of GLUE: phrases and sentences."""

from typing import Any

from datasets import Dataset, DatasetDict

from alignkit.data.reading import check_splits, read_named, require_columns
from alignkit.data.splitting import check_size, limited

HUB_ID = "stanfordnlp/sst2"


def columns(**settings: Any) -> list[str]:
    """Always text and label; raises `DataError` for numbers that cannot be meant."""
    for name in ("min_words", "train_size", "validation_size"):
        check_size(name, settings.get(name))
    return ["text", "label"]


def load(
    min_words: int = 1,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Texts with their label, 0 negative and 1 positive.

    Phrases that occur more than once are kept once; those that are also in validation are not in train.

    Args:
        min_words: leave out shorter texts of train (many are phrases of one to three words); validation keeps all.
        train_size: keep at most so many rows.
        validation_size: keep at most so many rows.
        seed: of the order of the rows.
    """
    columns(min_words=min_words, train_size=train_size, validation_size=validation_size)
    splits: dict[str, Dataset] = {}
    taken: set[str] = set()
    for split in ("validation", "train"):
        raw = read_named("sst2", split, HUB_ID)
        require_columns(raw, ["sentence", "label"], f"sst2 ({split})")
        rows: dict[str, int] = {}
        contradicted = set()
        for sentence, label in zip(raw["sentence"], raw["label"], strict=True):
            text = " ".join(sentence.split())
            if rows.setdefault(text, int(label)) != int(label):
                contradicted.add(text)
        fewest = min_words if split == "train" else 1
        kept = [t for t in rows if t and t not in contradicted and t not in taken and len(t.split()) >= fewest]
        taken |= set(kept)
        splits[split] = Dataset.from_dict({"text": kept, "label": [rows[text] for text in kept]})
    ordered = DatasetDict(train=splits["train"], validation=splits["validation"])
    return limited(check_splits(ordered, "sst2"), train_size, validation_size, seed)
