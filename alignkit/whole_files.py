"""Files and folders that are whole or not there: whoever reads them never meets one that broke off.

What is written goes to another name first and takes its place in one move, which no kill can cut in two. (A folder
whose name is taken needs two: the old one goes out of the way first. `finish_replacing` makes up for a second one that
a kill left out.)
"""

import errno
import os
import shutil
import tempfile
from pathlib import Path

from alignkit.errors import ConfigError

# Where folders are built, and where those that are deleted go first; no host takes it for a checkpoint.
UNFINISHED = "alignkit_unfinished"
_REPLACED = "replaced-"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries that write by themselves say: safetensors (Rust) and torch (C++) raise no OSError.
_SAID = ("(os error 28)", "(os error 27)", "(os error 122)", "No space left", "PytorchStreamWriter", "inline_container")


def write_text(path: str | Path, text: str) -> Path:
    """Puts a text in the place of what a file holds; killed on the way, it leaves the file as it was.

    A link leads to the file that is replaced; what is no file (a pipe, a terminal, /dev/null) is written to as it is.

    Returns:
        the path.
    """
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> Path:
    """As `write_text`, for what is no text."""
    path = Path(path)
    place = path.resolve()
    if place.exists() and not place.is_file():
        place.write_bytes(content)
        return path
    new = place.with_name(f"{place.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            shutil.copymode(place, new)
        os.replace(new, place)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    return path


def sync_folder(folder: Path) -> None:
    """Have everything below a folder on the disk, so that a power failure after a rename leaves no empty files."""
    for path in (*folder.rglob("*"), folder):
        sync_file(path)


def put_in_place(new: Path, place: Path) -> None:
    """Move a finished folder to its name, in the place of one that has it already.

    Args:
        new: a folder in `<somewhere>/alignkit_unfinished`, which is removed with all that is left in it.
        place: in `<somewhere>`, of the same name.
    """
    sync_folder(new)
    old = new.with_name(f"{_REPLACED}{place.name}")
    if place.exists():
        place.rename(old)
    new.rename(place)
    sync_file(place.parent)
    if old.exists():
        old.rename(old.with_name(f"deleted-{place.name}"))  # should it not go away, it must not look like half a move
    shutil.rmtree(new.parent, ignore_errors=True)


def finish_replacing(folder: Path) -> None:
    """Make the second move where a kill let `put_in_place` make the first one only.

    Both folders are whole then, and neither has its name: the new one gets it. To be called by one process, before
    anyone looks for what is in a folder, or clears its `alignkit_unfinished`.

    Args:
        folder: the `<somewhere>` of `put_in_place`; need not be there.
    """
    for old in (folder / UNFINISHED).glob(f"{_REPLACED}*"):
        new = old.with_name(old.name.removeprefix(_REPLACED))
        place = folder / new.name
        if place.exists():
            old.rename(old.with_name(f"deleted-{new.name}"))  # both moves were made
        elif new.exists():
            new.rename(place)
            sync_file(folder)


def discard(folder: Path) -> None:
    """Delete a folder so that a kill in the middle does not leave half of it under its name."""
    doomed = folder.parent / UNFINISHED / f"deleted-{folder.name}"
    doomed.parent.mkdir(exist_ok=True)
    folder.rename(doomed)
    shutil.rmtree(doomed.parent, ignore_errors=True)


def prepare_output(file: str | Path | None, option: str) -> None:
    """See that a file can be written before what goes into it is computed; the folders that lead to it are made.

    Args:
        file: None where nothing was asked for.
        option: what names it, for the message.

    Raises:
        ConfigError: it is a folder, or cannot be written.
    """
    if file is None:
        return
    place = Path(file)
    if place.is_dir():
        raise ConfigError(f"{option}: {place} is a folder; give a file in it")
    check_writable(place.parent, option)
    place.parent.mkdir(parents=True, exist_ok=True)


def check_writable(folder: str | Path, setting: str = "output_dir") -> None:
    """See whether files can be made in a folder, or in what is there of its path; nothing is left behind.

    Args:
        folder: need not be there yet.
        setting: the setting that names it, for the message.

    Raises:
        ConfigError: they cannot, and why.
    """
    folder = Path(folder)
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        where = "" if place == folder else f" (of it there is {place})"
        raise ConfigError(
            f"{setting}: nothing can be written to {folder}{where}: {error.strerror or error}. Change its rights, make "
            "room, or choose another folder"
        ) from error


def is_failed_write(error: BaseException) -> bool:
    """Whether an error says that a file could not be written, whichever library wrote it."""
    return isinstance(error, OSError) or any(words in str(error) for words in _SAID)


def is_lack_of_room(error: BaseException) -> bool:
    """Whether a disk, a quota or a limit of file sizes was full."""
    return error.errno in _NO_ROOM if isinstance(error, OSError) else is_failed_write(error)


def readable_size(count: float) -> str:
    """Bytes for people.

    >>> readable_size(0), readable_size(2048), readable_size(3.5 * 2**30)
    ('0 bytes', '2.0 KiB', '3.5 GiB')
    """
    if count < 1024:
        return f"{int(count)} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sync_file(path: Path) -> None:
    """Have one file, or the list of what is in one folder, on the disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network folders know no fsync of folders
            raise
    finally:
        os.close(handle)
