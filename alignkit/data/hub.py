"""Any data set of the hub by its id, or a folder of that name below ALIGNKIT_DATA, with columns renamed as needed."""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, get_dataset_split_names

from alignkit.data.files import columns as check_numbers
from alignkit.data.reading import FORMATS, check_splits, data_folders, read_file, read_hub, rename
from alignkit.data.splitting import hold_out, limited
from alignkit.errors import DataError


def columns(**settings: Any) -> None:
    """Only the data can tell; raises `DataError` for numbers that cannot be meant."""
    check_numbers(**settings)


def load(
    name: str,
    config: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    columns: dict[str, str] | None = None,
    revision: str | None = None,
    validation_share: float = 0.1,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Rows of a data set of the hub; all its columns stay, and reach the rewards by name.

    A folder of that name, or of its last component, below ALIGNKIT_DATA is read instead; its files are the splits.

    Args:
        name: hub id, such as `stanfordnlp/imdb`.
        config: the configuration, where the set has several.
        train_split: the split to train on.
        validation_split: the split to evaluate on. Without it `validation` is taken where there is one, else a part of
            train is held out (always the same rows). A test split is used only when you name it here.
        columns: our name -> the name in the data, such as `{"prompt": "question", "reference": "answer"}`.
        revision: branch, tag or commit.
        validation_share: how much is held out.
        train_size: keep at most so many rows.
        validation_size: keep at most so many rows.
        seed: of the order of the rows, not of the split.
    """
    folder = _folder(name)
    if folder:
        available = sorted(_splits(folder))
        if train_split not in available:
            raise DataError(f"{str(folder)!r} has no split {train_split!r}; it has: {', '.join(available)}")
    else:
        train = read_hub(name, train_split, config, revision, wanted=f"{name}/{train_split}.parquet")
        available = get_dataset_split_names(name, config, revision=revision)
    if validation_split and validation_split not in available:
        raise DataError(f"{name!r} has no split {validation_split!r}; it has: {', '.join(available)}")
    other = validation_split or ("validation" if "validation" in available else None)

    def read(split: str) -> Dataset:
        if folder:
            dataset = read_file(_splits(folder)[split])
        else:
            dataset = train if split == train_split else read_hub(name, split, config, revision)
        return rename(dataset, columns, f"{name} ({split})")

    source = read(train_split)
    splits = DatasetDict(train=source, validation=read(other)) if other else hold_out(source, validation_share)
    return limited(check_splits(splits, name), train_size, validation_size, seed)


def _folder(name: str) -> Path | None:
    candidates = [folder / part for folder in data_folders() for part in (name, Path(name).name)]
    return next((candidate for candidate in candidates if _splits(candidate)), None)


def _splits(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in FORMATS}
