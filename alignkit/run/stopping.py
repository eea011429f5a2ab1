"""What a run says when it ends before its end, and how to go on from there."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from accelerate import PartialState

from alignkit.errors import AlignkitError, CheckpointError
from alignkit.report import write_report
from alignkit.run.environment import command_line, launched
from alignkit.run.folder import RunFolder
from alignkit.trainers.checkpoint_files import choose_checkpoint
from alignkit.whole_files import is_lack_of_room


def how_to_continue(folder: Path) -> str:
    """The command that continues this run: the one that was given, or one with the run's own recipe."""
    program, *given = command_line() or [""]
    start = "alignkit" if program == "alignkit" else "python -m alignkit"
    if given[:1] != ["train"] or program not in ("alignkit", "__main__.py"):
        start, given = "alignkit", ["train", str(folder / "recipe.yaml")]
    words = [word for word in given if word not in ("--resume", "--overwrite")]
    # one process would go on with a smaller batch
    return launched([*words, "--resume"], PartialState().num_processes, start)


def end_stopped(number: int, folder: RunFolder) -> NoReturn:
    """Say how to go on from the checkpoint, and end the process as a signal asked: 130 for Ctrl-C, 143 for SIGTERM."""
    _tell(folder)
    PartialState().wait_for_everyone()  # a launcher ends the others when one has gone
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def say_how_to_continue(folder: RunFolder) -> Iterator[None]:
    """Where Ctrl-C ends what is inside at once: say what is saved, and the command that goes on from it."""
    try:
        yield
    except KeyboardInterrupt:
        _tell(folder)
        raise


@contextmanager
def telling_of_a_full_disk(folder: RunFolder) -> Iterator[None]:
    """Where the disk is full, say what is safe and how to go on.

    Raises:
        AlignkitError: in the place of the error that a full disk, quota or file size limit raised.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if not is_lack_of_room(error):
            raise
        last = choose_checkpoint(folder.path).checkpoint
        kept = "there is no whole checkpoint yet" if last is None else f"the last whole checkpoint is {last.name}"
        raise AlignkitError(
            f"the run in {folder.path} could not go on writing: {error}; {kept}. Make room, then continue with: "
            f"{how_to_continue(folder.path)}"
        ) from error


def _tell(folder: RunFolder) -> None:
    if not folder.main:
        return
    if (folder.path / "metrics.jsonl").is_file():
        print(f"what there is so far: {write_report(folder.path)}", flush=True)
    last = choose_checkpoint(folder.path).checkpoint
    saved = "no checkpoint was saved yet" if last is None else f"{last.name} is saved"
    print(f"interrupted; {saved}. To continue: {how_to_continue(folder.path)}", flush=True)
