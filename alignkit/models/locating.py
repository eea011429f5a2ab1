"""Where a model's files are: the folder or hub id behind a name, and what to say when there is nothing."""

import importlib.util
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import is_offline_mode
from safetensors import SafetensorError

from alignkit.errors import ModelError
from alignkit.settings import did_you_mean

FOLDERS_VARIABLE = "ALIGNKIT_MODELS"
# What marks the folder of a run, and where in it the run saves its model and the rewards that learned.
RUN_RECIPE, RUN_MODEL, RUN_REWARDS = "recipe.yaml", "model", "rewards"
_PACKAGE = "package:"
# What `from_pretrained` raises when files are unreadable, unknown or do not fit together.
_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def resolve_model(name: str | os.PathLike) -> str:
    """The folder or hub id that `name` stands for.

    In this order: the folder of a run, which stands for its model; a folder that holds a model;
    `package:PACKAGE/FOLDER`, a folder inside an installed Python package; the name, or its last component, in each
    folder of the environment variable ALIGNKIT_MODELS (several are separated as in PATH); else a hub id, returned as it
    is.

    Raises:
        ModelError: the folder exists but is neither a run's nor holds a model, or the run has not saved its model, or
            `name` can only be a path and does not exist.
    """
    name = os.fspath(name)
    if not name.strip():
        raise ModelError("the name of the model is empty; give a folder, a hub id or package:PACKAGE/FOLDER")
    if name.startswith(_PACKAGE):
        return str(_package_folder(name))
    folder = Path(name).expanduser()
    shelved = (candidate for shelf in _shelves() for candidate in (shelf / name, shelf / Path(name).name))
    for candidate in (folder, *shelved):
        if (found := _model_in(candidate)) is not None:
            return str(found)
        if is_run(candidate):
            raise ModelError(
                f"{str(candidate)!r} is the folder of a run that has not saved its model: no {RUN_MODEL}/ with "
                "config.json or adapter_config.json. Finish it (alignkit train RECIPE --resume), or give one of its "
                "checkpoint-* folders"
            )
    if folder.is_dir():
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
        raise ModelError(
            f"{name!r} is neither a model's folder nor a run's: it {f'has {inside}' if inside else 'is empty'}, but no "
            "config.json or adapter_config.json (save_model and save_pretrained write them), and no "
            f"{RUN_RECIPE} with {RUN_MODEL}/ (alignkit train writes them)"
        )
    if folder.is_file():
        raise ModelError(f"{name!r} is a file; give the folder that holds config.json, weights and tokenizer")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(
            f"there is no folder {name!r}, and it cannot be a hub id; "
            "check the path, or first run the recipe that writes this model"
        )
    return name


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def explained(name: str | os.PathLike, folder: str, part: str) -> Iterator[None]:
    """Turns what `from_pretrained` raises into a `ModelError` that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"the {part} in {folder!r} is a pickle that is damaged or would run code, so it is not read. "
            "Give weights in safetensors (save_pretrained writes them)"
        ) from error
    except _LOADING_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"the {part} {str(name)!r} brings Python code of its own; read that code, and if you trust it, "
                "load with trust_remote_code=True"
            ) from error
        if Path(folder).is_dir():
            raise ModelError(
                f"the {part} in {folder!r} cannot be loaded: {_first_line(error).rstrip('.')}. "
                "Check that its files are complete and that this version of transformers knows the model type"
            ) from error
        sought = "model or run" if part == "tokenizer" else part  # the first that is sought of a model
        raise ModelError(f"there is no {sought} {folder!r}: {_where_looked(folder)}") from error


def _where_looked(name: str) -> str:
    shelves = _shelves()
    if shelves:
        known = sorted({path.name for shelf in shelves if shelf.is_dir() for path in shelf.iterdir() if path.is_dir()})
        hint = did_you_mean(Path(name).name, known, listing=len(known)) or "; no folder is there"
        searched = f"nor in {FOLDERS_VARIABLE} ({os.pathsep.join(map(str, shelves))}{hint})"
    else:
        searched = f"nor searched for in {FOLDERS_VARIABLE}, which is not set"
    hub = "the hub was not asked because HF_HUB_OFFLINE is set" if is_offline_mode() else "the hub could not give it"
    return (
        f"it is no folder here, {searched}, and {hub}. Give the path of a model folder, set {FOLDERS_VARIABLE} to the "
        "folder that contains it, or go online and check the hub id"
    )


def _shelves() -> list[Path]:
    return [Path(part).expanduser() for part in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if part]


def _model_in(folder: Path) -> Path | None:
    """The model that a folder holds; as the folder of a run that of its end, for a copy beside it may be older."""
    candidates = [folder / RUN_MODEL, folder] if is_run(folder) else [folder]
    return next((candidate for candidate in candidates if _holds_model(candidate)), None)


def is_run(folder: Path) -> bool:
    """Whether `alignkit train` has begun a run in this folder."""
    return (folder / RUN_RECIPE).is_file()


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def _package_folder(name: str) -> Path:
    package, _, inside = name.removeprefix(_PACKAGE).partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ModelError(
            f"{name!r}: no Python package {package!r} is installed; install it, or give a folder or hub id"
        )
    folder = Path(next(iter(found.submodule_search_locations))) / inside
    if not _holds_model(folder):
        raise ModelError(f"{name!r}: the package {package!r} has no model in {inside or '.'!r} (no config.json there)")
    return folder
