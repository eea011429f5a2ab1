"""One run at a time in a run's folder: a lock that the kernel frees, however the run ends.

`_run.lock` in the folder is locked (`flock`) as long as the run lives, and says in JSON which process holds it: `pid`,
`host`, `started`. After SIGKILL or a power failure the file stays and locks nothing; the next run takes it. A run that
ends otherwise removes it. The name begins with `_` because what does is left out when the host uploads the folder.

What is not guarded: Windows, which has no `flock`, and network folders that know none. A run there says so and goes on.
On network folders that do know it (NFS does), the lock holds between machines too.
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from alignkit.errors import AlignkitError
from alignkit.whole_files import check_writable

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "_run.lock"
logger = logging.getLogger("alignkit.run")
# folder -> descriptor of the lock that this process holds there
_held: dict[Path, int] = {}


@contextmanager
def only_run_in(folder: str | Path, setting: str = "output_dir") -> Iterator[None]:
    """Be the only run that is at work in a folder. Inside it the same run may ask again.

    To be called by all processes of the run: the main one holds the lock, and all of them raise what it raises.

    Args:
        folder: made if missing; one that is empty at the end goes away again.
        setting: the setting that names it, for the messages.

    Raises:
        AlignkitError: another run is at work there, and the message names its process; or the lock's file cannot be
            used, and the message says why.
        ConfigError: nothing can be written there.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    refusal: AlignkitError | None = None
    with contextlib.ExitStack() as lock:
        if PartialState().is_main_process:
            try:
                lock.enter_context(_lock(folder, setting))
            except AlignkitError as error:
                refusal = error
        refusal = broadcast_object_list([refusal])[0]
        if refusal is not None:
            raise refusal
        yield


@contextmanager
def _lock(folder: str | Path, setting: str) -> Iterator[None]:
    """Hold the lock in this process."""
    check_writable(folder, setting)
    place = Path(folder).resolve()
    if place in _held:
        yield
        return
    made = [path for path in (place, *place.parents) if not path.exists()]
    held = _locked(place, folder, setting)
    if held is None:
        yield
        return
    _held[place] = held
    try:
        try:
            os.ftruncate(held, 0)
            os.pwrite(held, f"{json.dumps(_this_process())}\n".encode(), 0)
        except OSError as error:
            advice = "make room there, or choose another folder"
            raise AlignkitError(_unusable(place, setting, "written", error, advice)) from error
        yield
    finally:
        if _held.pop(place, None) is not None:  # else this is a process that was forked inside
            # a file that stays locks nothing, so it must not turn the end of a run into an error
            with contextlib.suppress(OSError):
                (place / LOCK).unlink()
            os.close(held)
            with contextlib.suppress(OSError):  # the folders that are not empty
                for path in made:
                    path.rmdir()


def _locked(place: Path, folder: str | Path, setting: str) -> int | None:
    """A descriptor with the lock; None where there is no locking."""
    if fcntl is None:
        _say_not_guarded(folder, "this system has no flock")
        return None
    others = False  # whether the file is one that this user may only read
    while True:
        try:
            place.mkdir(parents=True, exist_ok=True)
            if others:
                handle = os.open(place / LOCK, os.O_RDONLY)
            else:
                handle = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask, as for any other file
        except FileNotFoundError:  # a run that ended just now took its empty folder, or its file, away
            others = False
            continue
        except PermissionError as error:
            if others or not (place / LOCK).exists():
                raise AlignkitError(_of_another(place, setting, "opened", error)) from error
            others = True  # it can be locked all the same
            continue
        except OSError as error:
            advice = "see what stands there, make room, or choose another folder"
            raise AlignkitError(_unusable(place, setting, "opened", error, advice)) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 4096, 0)
            os.close(handle)
            raise AlignkitError(_in_use(folder, setting, holder)) from None
        except OSError as error:
            os.close(handle)
            if others:  # some network folders lock only what may be written: whether its run lives cannot be told
                raise AlignkitError(_of_another(place, setting, "locked", error)) from error
            _say_not_guarded(folder, error.strerror or str(error))
            return None
        if not _is_file(handle, place / LOCK):
            os.close(handle)  # its run ended between the lines above, and removed the file: this one locks nothing
        elif others:
            _remove_left_over(handle, place, setting)
            others = False
        else:
            return handle


def _remove_left_over(handle: int, place: Path, setting: str) -> None:
    """Remove the file of another user whose run has gone; `handle` has its lock, so nobody else can be at work."""
    try:
        (place / LOCK).unlink()
    except OSError as error:
        raise AlignkitError(_of_another(place, setting, "removed", error)) from error
    finally:
        os.close(handle)


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, str | int]:
    started = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started}


def _in_use(folder: str | Path, setting: str, holder: bytes) -> str:
    try:
        found = json.loads(holder)
        who, end = f"process {found['pid']} on {found['host']}, since {found['started']}", f"`kill {found['pid']}`"
    except (ValueError, KeyError, TypeError):  # it has the lock and is about to write who it is
        who, end = f"{LOCK} does not say yet which process", "`kill` and its number"
    return (
        f"another run is at work in {folder}: {who}. Two runs in one folder would destroy each other's checkpoints. "
        f"Wait until it has ended, end it with {end} (alignkit train then saves a checkpoint), or choose another "
        f"{setting}"
    )


def _of_another(place: Path, setting: str, done: str, error: OSError) -> str:
    """For the file of another user, of which it cannot be told, or made use of, that its run has gone."""
    advice = (
        "it is another user's: if their run has ended, have it deleted, and the folder made one that you may write to; "
        "else wait, or choose another folder"
    )
    return _unusable(place, setting, done, error, advice)


def _unusable(place: Path, setting: str, done: str, error: OSError, advice: str) -> str:
    return f"{setting}: {place / LOCK} cannot be {done}: {error.strerror or error}; {advice}"


def _say_not_guarded(folder: str | Path, why: str) -> None:
    logger.warning(
        "%s is not guarded against a second run: files cannot be locked there (%s). See to it that there is none",
        folder,
        why,
    )


def _forget_in_child() -> None:
    """A forked process, such as one that loads data, must not hold the lock when the run is gone."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
