"""Which checkpoints of a run are whole: each carries a record of its files, written last."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from alignkit import __version__
from alignkit.whole_files import UNFINISHED, write_text

RECORD = "alignkit_files.json"
_NAMED = 3


@dataclass
class Choice:
    """The checkpoint to continue from, and what there is to say of those that are passed over.

    Args:
        checkpoint: the newest whole one; None where there is none.
        remarks: a half sentence for each newer one that is not whole.
    """

    checkpoint: Path | None
    remarks: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """All of it in a line: what was found, and what is done now."""
        what = "starting from the beginning"
        if self.checkpoint is not None:
            what = f"continuing from {self.checkpoint.name}"
        return "; ".join([*self.remarks, what])


def newest_last(run: Path) -> list[Path]:
    """The checkpoints of a run's folder, by step."""
    found = [folder for folder in run.glob("checkpoint-*") if folder.name.rpartition("-")[2].isdigit()]
    return sorted((folder for folder in found if folder.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def choose_checkpoint(run: str | Path) -> Choice:
    """The newest whole checkpoint of a run's folder. Nothing is touched."""
    run = Path(run)
    whole: Path | None = None
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(newest_last(run)):
        fault = fault_of(checkpoint)
        if fault is None:
            whole = checkpoint
            break
        damaged.append((checkpoint, fault))
    remarks = [f"{checkpoint.name} cannot be used ({fault})" for checkpoint, fault in damaged]
    for checkpoint in newest_last(run / UNFINISHED):
        remarks.append(
            f"{checkpoint.name} was cut off while it was being written ({_what_is_missing(checkpoint, whole)})"
        )
    return Choice(whole, remarks)


def write_record(checkpoint: Path) -> None:
    """Note every file of a checkpoint and its size; the last thing that is written into it.

    Sizes, not hashes: a file that was cut off differs in its size, and hashing would read gigabytes again at every
    save.
    """
    sizes = {name: file.stat().st_size for name, file in _files(checkpoint).items()}
    content = {"written_by": f"alignkit {__version__}", "files": sizes}
    write_text(checkpoint / RECORD, json.dumps(content, indent=2) + "\n")


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its record, for people; None for a whole one."""
    if not (checkpoint / RECORD).is_file():
        return f"it has no {RECORD}, the record of its files, so nobody can tell whether it is whole"
    try:
        sizes = _recorded(checkpoint)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"its record of files, {RECORD}, is damaged"
    here = _files(checkpoint)
    missing = [name for name in sizes if name not in here]
    if missing:
        return f"{_some(missing)} missing"
    for name, size in sizes.items():
        found = here[name].stat().st_size
        if found != size:
            return f"{name} has {found} bytes, but {size} were written"
    return None


def _recorded(checkpoint: Path) -> dict[str, int]:
    return dict(json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))["files"].items())


def _files(checkpoint: Path) -> dict[str, Path]:
    found = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    return {path.relative_to(checkpoint).as_posix(): path for path in found if path.name != RECORD}


def _what_is_missing(unfinished: Path, whole: Path | None) -> str:
    """As far as an earlier checkpoint tells."""
    if (unfinished / RECORD).is_file():
        return "all of it was there, but not yet in its place"
    here = _files(unfinished)
    missing = [name for name in (_recorded(whole) if whole is not None else {}) if name not in here]
    return f"{_some(missing)} missing" if missing else "the record of its files is missing"


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
