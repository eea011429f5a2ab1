"""SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250) as question generation: the question to an answer in a passage.

Unanswerable questions, which version 2.0 has, are left out: there is no answer to ask for.
"""

from typing import Any

from datasets import Dataset, DatasetDict

from alignkit.data.passages import around
from alignkit.data.reading import check_splits, read_named, require_columns
from alignkit.data.splitting import check_size, limited
from alignkit.errors import DataError

HUB_ID = "rajpurkar/squad"
MARK = "<hl>"


def columns(**settings: Any) -> list[str]:
    """Always prompt and reference; raises `DataError` for numbers that cannot be meant."""
    check_size("sentences", settings.get("sentences"), least=0)
    for name in ("prompt_words", "reference_words", "train_size", "validation_size"):
        check_size(name, settings.get(name))
    return ["prompt", "reference"]


def load(
    sentences: int | None = None,
    prompt_words: int | None = None,
    reference_words: int | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Prompts with an answer and the passage that it stands in, where it is marked; the reference is the question.

    Of several answers the first counts. No prompt comes twice in validation, and none there is also in train.

    Args:
        sentences: trim the passage to the sentence with the answer and so many on either side; None keeps it whole.
        prompt_words: leave out longer prompts.
        reference_words: leave out longer questions.
        train_size: keep at most so many rows.
        validation_size: keep at most so many rows.
        seed: of the order of the rows.
    """
    settings = {"sentences": sentences, "prompt_words": prompt_words, "reference_words": reference_words}
    columns(**settings, train_size=train_size, validation_size=validation_size)
    splits: dict[str, list[dict[str, str]]] = {}
    for split in ("train", "validation"):
        raw = read_named("squad", split, HUB_ID)
        require_columns(raw, ["context", "question", "answers"], f"squad ({split})")
        rows = []
        for row in raw:
            if row.get("is_impossible") or not row["answers"]["text"]:
                continue
            answer, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
            prompt = question_prompt(row["context"], answer, start, sentences)
            question = " ".join(row["question"].split())
            if prompt_words is not None and len(prompt.split()) > prompt_words:
                continue
            if question and (reference_words is None or len(question.split()) <= reference_words):
                rows.append({"prompt": prompt, "reference": " " + question})
        splits[split] = rows
    seen = {row["prompt"] for row in splits["train"]}
    fresh: dict[str, dict[str, str]] = {}
    for row in splits["validation"]:
        if row["prompt"] not in seen:
            fresh.setdefault(row["prompt"], row)
    splits["validation"] = list(fresh.values())
    for split, rows in splits.items():
        if not rows:
            raise DataError(
                f"squad: no question is left in {split!r}; allow longer ones with prompt_words and reference_words"
            )
    parts = DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})
    return limited(check_splits(parts, "squad"), train_size, validation_size, seed)


def question_prompt(passage: str, answer: str, start: int, sentences: int | None = None) -> str:
    """What a question is to be asked from.

    Args:
        passage: with the answer in it.
        answer: as it stands there.
        start: its first character.
        sentences: see `load`.

    Raises:
        DataError: the answer does not stand there.

    >>> print(question_prompt("Ann sings. Bob plays the flute. Cy sleeps.", "the flute", 21, 0))
    answer: the flute
    passage: Bob plays <hl> the flute <hl>.
    question:
    """
    end = start + len(answer)
    if passage[start:end] != answer:
        raise DataError(
            f"squad: at character {start} of a passage stands {passage[start:end]!r} and not its answer {answer!r}; "
            "the data are damaged, or count in bytes"
        )
    low, high = (0, len(passage)) if sentences is None else around(passage, start, end, sentences)
    marked = f"{passage[low:start]}{MARK} {answer} {MARK}{passage[end:high]}"
    return f"answer: {' '.join(answer.split())}\npassage: {' '.join(marked.split())}\nquestion:"
