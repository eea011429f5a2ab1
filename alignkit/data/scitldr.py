"""SciTLDR (Cachola et al. 2020, arXiv:2004.15011): papers of computer science in one sentence, from their abstracts."""

from typing import Any

from datasets import Dataset, DatasetDict

from alignkit.data.passages import beginning
from alignkit.data.reading import check_splits, read_named, rename, require_columns
from alignkit.data.splitting import check_size, limited
from alignkit.errors import DataError

HUB_ID = "allenai/scitldr"


def columns(**settings: Any) -> list[str]:
    """Always prompt, reference and references; raises `DataError` for numbers that cannot be meant."""
    for name in ("prompt_words", "reference_words", "train_size", "validation_size"):
        check_size(name, settings.get(name))
    return ["prompt", "reference", "references"]


def load(
    prompt_words: int | None = None,
    reference_words: int | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Abstracts as prompts; the reference is the author's summary. An abstract of train is not in validation.

    Args:
        prompt_words: trim the abstract to the sentences from its beginning that have at most so many words.
        reference_words: leave out rows with a longer summary from train; validation keeps all.
        train_size: keep at most so many rows.
        validation_size: keep at most so many rows.
        seed: of the order of the rows.

    `references` holds every summary of the paper, the author's first: one in train, up to six in validation.
    """
    columns(
        prompt_words=prompt_words,
        reference_words=reference_words,
        train_size=train_size,
        validation_size=validation_size,
    )
    splits = {}
    seen: set[str] = set()
    for split in ("train", "validation"):
        rows = []
        for abstract, summaries in _papers(split):
            fits = reference_words is None or len(summaries[0].split()) <= reference_words
            if abstract in seen or not (fits or split == "validation"):
                continue
            seen.add(abstract)
            given = abstract if prompt_words is None else beginning(abstract, prompt_words)
            summaries = [" " + summary for summary in summaries]
            rows.append({"prompt": f"{given}\nTL;DR:", "reference": summaries[0], "references": summaries})
        if not rows:
            raise DataError(f"scitldr: no paper is left in {split!r}; allow longer summaries with reference_words")
        splits[split] = Dataset.from_list(rows)
    return limited(check_splits(DatasetDict(splits), "scitldr"), train_size, validation_size, seed)


def _papers(split: str) -> list[tuple[str, list[str]]]:
    """Abstract and summaries of each paper that has both. The hub has lists of sentences under other names."""
    # the hub's own set carries a script, which `datasets` no longer runs; this is what the hub made of it
    raw = read_named("scitldr", split, HUB_ID, config="Abstract", revision="refs/convert/parquet")
    if "source" in raw.column_names:
        raw = rename(raw, {"document": "source", "references": "target"}, f"scitldr ({split})")
    require_columns(raw, ["document", "references"], f"scitldr ({split})")
    papers = []
    for document, references in zip(raw["document"], raw["references"], strict=True):
        abstract = " ".join((document if isinstance(document, str) else " ".join(document)).split())
        summaries = [summary for one in references if (summary := " ".join(one.split()))]
        if abstract and summaries:
            papers.append((abstract, summaries))
    return papers
