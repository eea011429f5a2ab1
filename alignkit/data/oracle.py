"""Texts of the synthetic oracle: an LSTM with random weights, so that the likelihood of any text under it is known."""

from functools import lru_cache
from typing import Any

from datasets import Dataset, DatasetDict

from alignkit.data.reading import check_splits
from alignkit.data.sentences import begins_with
from alignkit.data.splitting import check_size
from alignkit.models.oracle import OracleLSTM

# Each split has draws of its own.
_SPLITS = {"train": 0, "validation": 1}


def columns(**settings: Any) -> list[str]:
    """Always prompt and reference; raises `DataError` for numbers that cannot be meant."""
    begins_with(settings.get("prompt"))
    check_size("vocabulary", settings.get("vocabulary"), least=2)
    for name in ("length", "train_size", "validation_size"):
        check_size(name, settings.get(name))
    for name in ("seed", "oracle_seed"):
        check_size(name, settings.get(name), least=0)
    return ["prompt", "reference"]


def load(
    vocabulary: int = 200,
    length: int = 20,
    oracle_seed: int = 0,
    prompt: str | None = None,
    train_size: int = 10000,
    validation_size: int = 1000,
    seed: int = 0,
) -> DatasetDict:
    """Samples of `alignkit.models.oracle.OracleLSTM` as texts such as `w12 w7 w0`, with nothing to continue.

    Args:
        vocabulary: words of the oracle.
        length: words of every text.
        oracle_seed: of the oracle's weights; another seed is another distribution.
        prompt: of every row: the text of the token that begins a text; None is <|endoftext|>.
        train_size: number of samples.
        validation_size: number of samples, drawn apart from those of train.
        seed: of the samples. Validation has the same ones whatever the seed.
    """
    columns(
        prompt=prompt,
        vocabulary=vocabulary,
        length=length,
        train_size=train_size,
        validation_size=validation_size,
        seed=seed,
        oracle_seed=oracle_seed,
    )
    splits = {}
    for split, size in (("train", train_size), ("validation", validation_size)):
        texts = _samples(vocabulary, length, oracle_seed, split, size, seed if split == "train" else 0)
        splits[split] = Dataset.from_dict({"prompt": [begins_with(prompt)] * size, "reference": texts})
    return check_splits(DatasetDict(splits), "oracle")


@lru_cache(maxsize=4)  # the last two data sets: 50,000 texts take seconds
def _samples(vocabulary: int, length: int, oracle_seed: int, split: str, size: int, seed: int) -> list[str]:
    oracle = OracleLSTM(vocabulary, length, oracle_seed)
    return [oracle.text(words) for words in oracle.sample(size, [oracle_seed, _SPLITS[split], seed]).tolist()]
