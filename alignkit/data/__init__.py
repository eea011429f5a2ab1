"""Data sets by name: raw fields in, the columns that trainers and rewards read out.

`load_data("imdb", prompt_words=8)` gives a `datasets.DatasetDict` with the splits `train` and `validation`. Every name
is one module with two functions: `load(**settings)`, whose signature is the list of settings, and
`columns(**settings)`, which says before anything is read what columns there will be.
"""

import inspect
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

from alignkit.errors import DataError
from alignkit.settings import argument_problems, did_you_mean

if TYPE_CHECKING:
    from datasets import DatasetDict


@dataclass(frozen=True)
class DataSource:
    """One line of the table of data sets.

    Attributes:
        module: what reads it.
        description: what it gives.
        slow: a model makes it, so that a dry run asks for few rows.
    """

    module: str
    description: str
    slow: bool = False


DATASETS: dict[str, DataSource] = {
    "dailydialog": DataSource(
        "alignkit.data.dailydialog", "everyday dialogues of two people, an emotion for each turn"
    ),
    "empathetic_dialogues": DataSource(
        "alignkit.data.empathetic_dialogues", "a speaker tells a listener of a situation, under one of 32 emotions"
    ),
    "emnlp_news": DataSource("alignkit.data.emnlp_news", "sentences of news to be written from nothing"),
    "files": DataSource("alignkit.data.files", "your own parquet, jsonl, csv or text files, columns renamed as needed"),
    "hub": DataSource("alignkit.data.hub", "any data set of the hub by its id, columns renamed as needed"),
    "image_coco": DataSource("alignkit.data.image_coco", "captions of pictures to be written from nothing"),
    "imdb": DataSource("alignkit.data.imdb", "film reviews: openings to continue, labelled segments, or whole texts"),
    "look_ahead": DataSource(
        "alignkit.data.look_ahead",
        "a turn, the reply to it, and a reward's opinion of what was said next, as label",
        slow=True,
    ),
    "mix": DataSource("alignkit.data.mix", "several of these as one, with the columns that all of them have"),
    "oracle": DataSource("alignkit.data.oracle", "samples of an LSTM with random weights, whose likelihood is known"),
    "personachat": DataSource("alignkit.data.personachat", "two people who have a persona each get to know each other"),
    "quickstart": DataSource(
        "alignkit.data.quickstart", "short reviews from a grammar of our own; nothing to download"
    ),
    "scitldr": DataSource("alignkit.data.scitldr", "abstracts of papers, and each paper in one sentence"),
    "squad": DataSource("alignkit.data.squad", "question generation: an answer in its passage, and the question to it"),
    "sst2": DataSource("alignkit.data.sst2", "Stanford Sentiment Treebank, two classes: phrases and sentences"),
}


def load_data(use: str, **settings: Any) -> "DatasetDict":
    """The data set of that name, as `DatasetDict` with `train` and `validation`.

    Args:
        use: a name in `DATASETS`.
        settings: the data set's own; `data_settings(use)` lists them.

    Raises:
        DataError: unknown name or settings; data that are missing, unreadable, empty or lack a column.
    """
    problems = data_problems(use, settings)
    if problems:
        raise DataError("; ".join(problems))
    return _module(use).load(**settings)


def settings_of(spec: dict[str, Any]) -> dict[str, Any]:
    """What stands beside `use` where a recipe names a data set or a reward."""
    return {key: value for key, value in spec.items() if key != "use"}


def data_settings(use: str) -> inspect.Signature:
    """The settings of a data set, with types and defaults.

    Raises:
        DataError: there is no data set of that name.
    """
    problem = _unknown(use)
    if problem:
        raise DataError(problem)
    return inspect.signature(_module(use).load)


def data_problems(use: str, settings: dict[str, Any]) -> list[str]:
    """What is wrong with a name and its settings, one sentence each; empty when all is well. Reads no data."""
    problem = _unknown(use)
    if problem:
        return [problem]
    module = _module(use)
    parameters = inspect.signature(module.load).parameters
    problems = argument_problems(f"data set {use!r}", settings, parameters, hints=get_type_hints(module.load))
    if problems:
        return problems
    try:
        module.columns(**settings)
    except DataError as error:
        return [str(error)]
    return []


def known_columns(use: str, **settings: Any) -> list[str] | None:
    """The columns that `load_data` will give, or None when only the data themselves can tell. Reads no data.

    Raises:
        DataError: unknown name or settings.
    """
    problems = data_problems(use, settings)
    if problems:
        raise DataError("; ".join(problems))
    return _module(use).columns(**settings)


def _module(use: str) -> ModuleType:
    return import_module(DATASETS[use].module)


def _unknown(use: str) -> str | None:
    if use in DATASETS:
        return None
    return (
        f"there is no data set {use!r}{did_you_mean(use, DATASETS)} "
        "For another set of the hub write use: hub with name: <id>, for your own files use: files with path: <file>"
    )
