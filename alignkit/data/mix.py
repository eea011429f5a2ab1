"""Several data sets as one, with the columns that all of them have."""

from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets

from alignkit.data import data_problems, known_columns, load_data, settings_of
from alignkit.data.reading import check_splits
from alignkit.data.splitting import check_size, limited
from alignkit.errors import DataError


def columns(parts: list[dict[str, Any]], **settings: Any) -> list[str] | None:
    """Those that every part has; None where only the data can tell. Raises `DataError` for parts that cannot be."""
    for name in ("train_size", "validation_size"):
        check_size(name, settings.get(name))
    if len(parts) < 2:
        raise DataError(f"a mix needs at least two parts, each like a recipe's `data`; got {len(parts)}")
    problems = []
    for place, part in enumerate(parts):
        use = part.get("use")
        if not isinstance(use, str):
            problems.append(f"part {place} does not say which data set it is; write use: NAME")
        else:
            problems += [f"part {place}: {problem}" for problem in data_problems(use, settings_of(part))]
    if problems:
        raise DataError("; ".join(problems))
    known = [known_columns(part["use"], **settings_of(part)) for part in parts]
    first = known[0]
    if first is None or any(names is None for names in known):
        return None
    shared = [name for name in first if all(name in names for names in known if names is not None)]
    if not shared:
        listed = "; ".join(f"{part['use']}: {', '.join(names or [])}" for part, names in zip(parts, known, strict=True))
        raise DataError(f"the parts of a mix have no column in common ({listed}); choose forms that do")
    return shared


def load(
    parts: list[dict[str, Any]],
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """The rows of several data sets, shuffled together; columns that not all of them have are left out.

    Args:
        parts: each as a recipe writes `data`: `{use: dailydialog, turns: 2}`.
        train_size: keep at most so many rows of all together.
        validation_size: keep at most so many rows of all together.
        seed: of the order of the rows.
    """
    columns(parts=parts, train_size=train_size, validation_size=validation_size)
    loaded = [load_data(part["use"], **settings_of(part)) for part in parts]
    splits = {}
    for split in ("train", "validation"):
        own = [data[split] for data in loaded]
        shared = [name for name in own[0].column_names if all(name in each.column_names for each in own)]
        if not shared:
            raise DataError("the parts of a mix have no column in common; rename some with their setting `columns`")
        splits[split] = _together([each.select_columns(shared) for each in own], [part["use"] for part in parts])
    return limited(check_splits(DatasetDict(splits), "the mix"), train_size, validation_size, seed)


def _together(own: list[Dataset], names: list[str]) -> Dataset:
    first = own[0]
    for each, name in zip(own[1:], names[1:], strict=True):
        for column, kind in each.features.items():
            if kind != first.features[column] and str(kind) != str(first.features[column]):
                raise DataError(
                    f"column {column!r} of {name} holds {kind}, that of {names[0]} holds {first.features[column]}; "
                    "choose forms that hold the same"
                )
    return concatenate_datasets(own)
