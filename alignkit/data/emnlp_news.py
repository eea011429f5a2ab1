"""Sentences of the EMNLP 2017 news: the 10,000 on which Caccia et al. (2020, arXiv:1811.02549) validate.

The full training set, about 278,600, is not read: figures on this part do not compare with published ones. It
has no validation part of its own: a tenth is held out, the same sentences whatever the seed. The test part is left
alone.
"""

from typing import Any

from datasets import DatasetDict

from alignkit.data.sentences import columns, sentences

__all__ = ["columns", "load"]

_ADDRESS = (
    "https://raw.githubusercontent.com/pclucas14/GansFallingShort/master/real_data_experiments/data/news/valid.txt"
)


def load(
    prompt: str | None = None,
    reference_words: int | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """A sentence a row, to be written from nothing; repeated ones are kept once.

    Args:
        prompt: of every row: the text of the token that begins a text; None is <|endoftext|>.
        reference_words: leave out longer sentences, of both splits.
        train_size: keep at most so many rows.
        validation_size: keep at most so many rows.
        seed: of the order of the rows, not of the split.
    """
    settings: dict[str, Any] = {"prompt": prompt, "reference_words": reference_words, "seed": seed}
    return sentences("emnlp_news", _ADDRESS, {**settings, "train_size": train_size, "validation_size": validation_size})
