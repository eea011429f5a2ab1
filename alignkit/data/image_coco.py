"""Captions of MS COCO's images, 10,000 for training, as Texygen has them (Zhu et al. 2018, arXiv:1802.01886).

The set has no validation part: a tenth of the captions of its train part is held out, the same ones whatever the seed.
Its test part is left alone.
"""

from typing import Any

from datasets import DatasetDict

from alignkit.data.sentences import columns, sentences

__all__ = ["columns", "load"]

_ADDRESS = "https://raw.githubusercontent.com/geek-ai/Texygen/master/data/image_coco.txt"


def load(
    prompt: str | None = None,
    reference_words: int | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """A caption a row, to be written from nothing; repeated ones are kept once.

    Args:
        prompt: of every row: the text of the token that begins a text; None is <|endoftext|>.
        reference_words: leave out longer captions, of both splits.
        train_size: keep at most so many rows.
        validation_size: keep at most so many rows.
        seed: of the order of the rows, not of the split.
    """
    settings: dict[str, Any] = {"prompt": prompt, "reference_words": reference_words, "seed": seed}
    return sentences("image_coco", _ADDRESS, {**settings, "train_size": train_size, "validation_size": validation_size})
