"""Your own files: parquet, jsonl, json, csv, tsv or plain text, with columns renamed as needed."""

import glob
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from alignkit.data.reading import FORMATS, check_splits, check_texts, concatenated, read_file, rename
from alignkit.data.splitting import check_size, hold_out, limited
from alignkit.errors import DataError


def columns(**settings: Any) -> None:
    """Only the files can tell; raises `DataError` for numbers that cannot be meant."""
    for name in ("train_size", "validation_size"):
        check_size(name, settings.get(name))
    share = settings.get("validation_share", 0.1)
    if not 0 < share < 1:
        raise DataError(f"validation_share must lie between 0 and 1, got {share!r}")


def load(
    path: str | list[str],
    validation: str | list[str] | None = None,
    columns: dict[str, str] | None = None,
    validation_share: float = 0.1,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Rows of files; all their columns stay, and reach the rewards by name.

    Args:
        path: a file, a pattern (`data/*.jsonl`), a list of these, or a folder with `train.*` and maybe `validation.*`.
        validation: the same for validation; without it, and without such a file in the folder, a part of train is held
            out: always the same rows, and rows with one prompt (or text) stay together.
        columns: our name -> the name in the files, such as `{"prompt": "question", "reference": "answer"}`.
        validation_share: how much is held out.
        train_size: keep at most so many rows.
        validation_size: keep at most so many rows.
        seed: of the order of the rows, not of the split.
    """
    train_files, found = _files(path, "train")
    validation_files = _files(validation, "validation")[0] if validation else found
    train = _read(train_files, columns)
    if validation_files:
        splits = DatasetDict(train=train, validation=_read(validation_files, columns))
    else:
        splits = hold_out(train, validation_share)
    source = ", ".join(map(str, train_files[:3]))
    return limited(check_splits(splits, source), train_size, validation_size, seed)


def _read(files: list[Path], columns: dict[str, str] | None) -> Dataset:
    parts = [check_texts(rename(read_file(file), columns, str(file)), str(file)) for file in files]
    return concatenated(parts, ", ".join(map(str, files[:3])))


def _files(path: str | list[str], split: str) -> tuple[list[Path], list[Path]]:
    """The files that `path` names, and those of validation when it is a folder that has some."""
    if isinstance(path, list):
        if not path:
            raise DataError("the list of files is empty; name at least one")
        return [file for item in path for file in _files(item, split)[0]], []
    place = Path(path).expanduser()
    if place.is_dir():
        own = _in_folder(place, split)
        if not own:
            listed = ", ".join(sorted(item.name for item in place.iterdir())[:8]) or "nothing"
            raise DataError(
                f"the folder {path!r} has no file {split}.* of a known format ({', '.join(FORMATS)}); it has: {listed}"
            )
        return own, _in_folder(place, "validation") if split == "train" else []
    if not place.exists() and glob.has_magic(path):
        matches = sorted(Path(match) for match in glob.glob(str(place), recursive=True))
        if not matches:
            raise DataError(f"no file fits the pattern {path!r} (relative ones start at {str(Path.cwd())!r})")
        return matches, []
    return [place], []


def _in_folder(folder: Path, split: str) -> list[Path]:
    return sorted(item for item in folder.glob(f"{split}.*") if item.suffix.lower() in FORMATS)
