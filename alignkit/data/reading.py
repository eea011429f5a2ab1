"""Files and hub data sets into `datasets.Dataset`, with errors that say which file and what to do."""

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, concatenate_datasets
from huggingface_hub import is_offline_mode

from alignkit.errors import DataError
from alignkit.settings import nearest

FOLDERS_VARIABLE = "ALIGNKIT_DATA"
FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
# The columns whose words a model reads: a null or an empty text there is a fault of the data.
_TEXT_COLUMNS = ("prompt", "text")


def data_folders() -> list[Path]:
    """The folders in ALIGNKIT_DATA, separated as in PATH."""
    return [Path(part).expanduser() for part in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if part]


def read_file(path: str | os.PathLike) -> Dataset:
    """One file as a data set; its ending says the format (parquet, jsonl, json, csv, tsv, txt).

    Raises:
        DataError: not there, of an unknown format, unreadable, or without rows.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}; check the path (relative ones start at {str(Path.cwd())!r})")
    if path.suffix.lower() not in FORMATS:
        raise DataError(
            f"{str(path)!r} ends in {path.suffix!r}, which is no known format; known: {', '.join(FORMATS)}. "
            "Write the data in one of them"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{str(path)!r} is empty (0 bytes); write at least one row")
    options = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
    try:
        with _quiet():
            loaded = datasets.load_dataset(
                FORMATS[path.suffix.lower()], data_files=_literal(path), split="train", **options
            )
    except _READING_ERRORS as error:
        if "no data" in str(error):
            raise DataError(f"{str(path)!r} has no rows; write at least one") from error
        raise DataError(
            f"{str(path)!r} cannot be read as {FORMATS[path.suffix.lower()]}: {_cause(error)}. "
            "The file is damaged, cut short or of another format; write or fetch it again"
        ) from error
    if path.suffix.lower() == ".txt":
        loaded = loaded.filter(lambda row: bool(row["text"].strip()), load_from_cache_file=False)
    return _with_rows(loaded, str(path))


def read_named(
    name: str,
    split: str,
    hub_id: str,
    hub_split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> Dataset:
    """A split of a known data set: `<folder>/<name>/<split>.parquet` for each folder of ALIGNKIT_DATA, else the hub.

    Raises:
        DataError: in neither place, or unreadable.
    """
    local = _local(name, split)
    if local is not None:
        return local
    return read_hub(hub_id, hub_split or split, config, revision, wanted=f"{name}/{split}.parquet")


def read_lines(name: str, split: str, address: str) -> Dataset:
    """A split of a known data set that is on no hub: as `read_named`, else the lines of the text at an address.

    Raises:
        DataError: in neither place, or unreadable.
    """
    local = _local(name, split)
    if local is not None:
        return local
    failed: Exception = ConnectionError("HF_HUB_OFFLINE is set")
    if not is_offline_mode():
        try:
            with _quiet():
                return _with_rows(datasets.load_dataset("text", data_files=address, split="train"), address)
        except _READING_ERRORS as error:
            # a server that does not answer and a file that is gone look the same here
            failed = ConnectionError(_cause(error))
    searched = os.pathsep.join(map(str, data_folders())) or "not set"
    raise DataError(
        f"{FOLDERS_VARIABLE} ({searched}) has no {name}/{split}.parquet, and {address} was not read: {failed}. "
        f"Set {FOLDERS_VARIABLE} to a folder with {name}/{split}.parquet (a column text), or go online"
    ) from failed


def _local(name: str, split: str) -> Dataset | None:
    paths = [folder / name / f"{split}.parquet" for folder in data_folders()]
    return next((read_file(path) for path in paths if path.is_file()), None)


def read_hub(
    name: str, split: str, config: str | None = None, revision: str | None = None, wanted: str | None = None
) -> Dataset:
    """A split of a data set of the hub; code in the data set is never run.

    Args:
        name: hub id, such as `stanfordnlp/imdb`.
        split: name of the split there.
        config: name of the configuration, where the set has several.
        revision: branch, tag or commit.
        wanted: the file below ALIGNKIT_DATA that would have served instead, for the message.
    """
    try:
        with _quiet():
            loaded = datasets.load_dataset(name, config, split=split, revision=revision)
    except _READING_ERRORS as error:
        searched = os.pathsep.join(map(str, data_folders())) or "not set"
        local = f"{FOLDERS_VARIABLE} ({searched}) has no {wanted}, and " if wanted else ""
        reason = "HF_HUB_OFFLINE is set and it is not in the cache" if is_offline_mode() else _cause(error)
        todo = f"set {FOLDERS_VARIABLE} to a folder with {wanted}, or g" if wanted else "G"
        raise DataError(
            f"{local}the hub did not give split {split!r} of {name!r}: {reason}. "
            f"{todo[0].upper()}{todo[1:]}o online and check id, configuration and split"
        ) from error
    return _with_rows(loaded, f"{name} ({split})")


def rename(dataset: Dataset, columns: Mapping[str, str] | None, source: str) -> Dataset:
    """Renames columns; other columns stay.

    Args:
        dataset: what was read.
        columns: our name -> the name in the data, such as `{"prompt": "question"}`.
        source: where the data came from, for the message.

    Raises:
        DataError: a column that the data lack, or a name that would then stand for two columns.
    """
    if not columns:
        return dataset
    lacking = [theirs for theirs in columns.values() if theirs not in dataset.column_names]
    if lacking:
        close = [nearest(name, dataset.column_names) for name in lacking]
        hints = ", ".join(f"{name!r} -> {near!r}" for name, near in zip(lacking, close, strict=True) if near)
        raise DataError(
            f"{source} has no column {', '.join(map(repr, lacking))}; it has: {', '.join(dataset.column_names)}"
            + (f". Did you mean {hints}?" if hints else ". Correct the mapping `columns` (our name: name in the data)")
        )
    if len(set(columns.values())) < len(columns):
        raise DataError(f"the mapping `columns` uses one column of {source} twice: {dict(columns)}")
    # A column that stands where another one is put gives way to it.
    covered = [ours for ours in columns if ours in dataset.column_names and ours not in columns.values()]
    return dataset.remove_columns(covered).rename_columns({t: o for o, t in columns.items() if o != t})


def require_columns(dataset: Dataset, names: Iterable[str], source: str) -> None:
    """Raises `DataError` when a column is not there."""
    missing = [name for name in names if name not in dataset.column_names]
    if missing:
        raise DataError(
            f"{source} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has: {', '.join(dataset.column_names)}. Are these the right data?"
        )


def check_texts(dataset: Dataset, source: str) -> Dataset:
    """The data set as it is, once no prompt and no text in it is null or empty.

    Raises:
        DataError: names column and row, counted from 0.
    """
    for column in _TEXT_COLUMNS:
        if column not in dataset.column_names:
            continue
        for row, value in enumerate(dataset[column]):
            if value is None or (isinstance(value, str) and not value.strip()) or value == []:
                raise DataError(f"{source}: row {row} has no {column} (got {value!r}); remove the row or fill it")
    return dataset


def check_splits(splits: DatasetDict, source: str) -> DatasetDict:
    """The splits as they are, once each has rows and what a model reads in train is there in validation too.

    Raises:
        DataError: an empty split, or one without the prompts or texts of the other.
    """
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise DataError(
                f"{source}: no row is left in {split!r}; loosen the settings that filter, or give more data"
            )
        check_texts(dataset, f"{source} ({split})")
    needed = [column for column in _TEXT_COLUMNS if column in splits["train"].column_names]
    require_columns(splits["validation"], needed, f"the validation part of {source}")
    return splits


def concatenated(parts: list[Dataset], source: str) -> Dataset:
    """Several files as one data set, with the column types of the first.

    Raises:
        DataError: their columns differ, in name or in what they hold.
    """
    if len({tuple(sorted(part.column_names)) for part in parts}) > 1:
        listed = "; ".join(", ".join(part.column_names) for part in parts)
        raise DataError(f"the files of {source} have different columns ({listed}); give files of one kind")
    if len(parts) == 1:
        return parts[0]
    try:
        with _quiet():
            return concatenate_datasets([parts[0], *(part.cast(parts[0].features) for part in parts[1:])])
    except (TypeError, *_READING_ERRORS) as error:
        raise DataError(
            f"the columns of the files of {source} differ in type: {_cause(error)}; make them alike"
        ) from error


_READING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError)


def _with_rows(dataset: Dataset, source: str) -> Dataset:
    if len(dataset) == 0:
        raise DataError(f"{source} has no rows; alignkit needs at least one in each split")
    return dataset


def _literal(path: Path) -> str:
    # `datasets` takes names with these characters for patterns.
    text = str(path)
    return "".join(f"[{character}]" if character in "*?[" else character for character in text)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.rstrip(".")


@contextmanager
def _quiet():
    shown = datasets.utils.logging.is_progress_bar_enabled()
    verbosity = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.disable_progress_bar()
    # What goes wrong is in the exception; the log would say it a second time.
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(verbosity)
        if shown:
            datasets.utils.logging.enable_progress_bar()
