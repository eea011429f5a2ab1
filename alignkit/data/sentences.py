"""Single sentences, to be written from nothing: what unconditional generation is trained and judged on.

A causal model needs one token to begin from, so the prompt of every row is the text of the token that begins a text.
"""

from typing import Any

from datasets import Dataset, DatasetDict

from alignkit.data.reading import check_splits, read_lines, require_columns
from alignkit.data.splitting import check_size, held_out, limited
from alignkit.errors import DataError

# The token that begins and ends a text for GPT-2's tokenizer, and for those of models from scratch.
BEGIN = "<|endoftext|>"
_SHARE = 0.1


def columns(**settings: Any) -> list[str]:
    """Always prompt and reference; raises `DataError` for numbers that cannot be meant."""
    begins_with(settings.get("prompt"))
    for name in ("reference_words", "train_size", "validation_size"):
        check_size(name, settings.get(name))
    return ["prompt", "reference"]


def begins_with(prompt: str | None) -> str:
    """The prompt of every row; raises `DataError` for one without a character, from which no causal model can begin."""
    if prompt is not None and not prompt.strip():
        raise DataError(
            "prompt must be the text of the token that begins a text, such as <s> for Llama's tokenizers, or be left "
            f"out for <|endoftext|>; got {prompt!r}"
        )
    return BEGIN if prompt is None else prompt


def sentences(name: str, address: str, settings: dict[str, Any]) -> DatasetDict:
    """Rows of a set that has a train part of one sentence a line, a tenth of which is held out by its text.

    Repeated sentences are kept once.

    Args:
        name: of the data set; `<name>/train.parquet` below ALIGNKIT_DATA has a column `text`.
        address: where the lines are read from without that.
        settings: `prompt`, `reference_words`, `train_size`, `validation_size`, `seed`.
    """
    columns(**settings)
    raw = read_lines(name, "train", address)
    require_columns(raw, ["text"], name)
    texts = sorted({" ".join(text.split()) for text in raw["text"]} - {""})
    mask = held_out(texts, _SHARE)
    longest = settings["reference_words"]
    splits = {}
    for split, wanted in (("train", False), ("validation", True)):
        own = [text for text, out in zip(texts, mask, strict=True) if out is wanted]
        kept = [text for text in own if longest is None or len(text.split()) <= longest]
        splits[split] = Dataset.from_dict({"prompt": [begins_with(settings["prompt"])] * len(kept), "reference": kept})
    parts = check_splits(DatasetDict(splits), name)
    return limited(parts, settings["train_size"], settings["validation_size"], settings["seed"])
