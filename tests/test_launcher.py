"""What torchrun starts ends when torchrun is killed, and the run's folder is free for the next one."""

import os
import select
import signal
import time
from pathlib import Path

import pytest
from test_interruption_processes import launch, wait_for_step

from alignkit import launcher
from alignkit.errors import AlignkitError
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.run_lock import LOCK
from alignkit.trainers.checkpoint_files import choose_checkpoint, newest_last


def ended_with_its_parent(child) -> bool:
    """Whether a process that does `child(gone)` ends when the process that forked it gets SIGKILL.

    `gone` waits until that has happened.
    """
    alive, held = os.pipe()
    ready, told = os.pipe()
    parent = os.fork()
    if parent == 0:
        me = os.getpid()
        if os.fork() == 0:
            os.close(alive)

            def gone() -> None:
                os.write(told, b"!")
                while os.getppid() == me:
                    time.sleep(0.01)

            try:
                child(gone)
                time.sleep(5)
            finally:
                os._exit(1)
        signal.pause()
    os.close(held)
    assert os.read(ready, 1) == b"!"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    ended = bool(select.select([alive], [], [], 3)[0])  # the last one that held the other end has gone
    for handle in (alive, ready, told):
        os.close(handle)
    return ended


def started_by_torchrun(gone) -> None:
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    assert launcher.end_with_launcher()
    gone()


def parent_dies_before_it_asks(gone) -> None:
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    launcher._FIRST = (os.getpid(), os.getppid())
    gone()
    launcher.end_with_launcher()


def started_by_a_shell(gone) -> None:
    os.environ.pop("TORCHELASTIC_RUN_ID", None)
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    assert not launcher.end_with_launcher()
    gone()


linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="prctl is Linux's")


@linux
@pytest.mark.parametrize("child, ends", [
    (started_by_torchrun, True), (parent_dies_before_it_asks, True), (started_by_a_shell, False),
], ids=lambda value: getattr(value, "__name__", None))  # fmt: skip
def test_a_process_of_torchrun_ends_with_its_parent(child, ends):
    assert ended_with_its_parent(child) == ends


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@linux
@pytest.mark.slow
def test_torchrun_is_killed_and_its_two_processes_end_with_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    torchrun = launch(tmp_path, run, 29821, "training.max_steps=100000", "training.save_steps=100000")
    wait_for_step(torchrun, run, 3)
    workers = [int((tmp_path / f"pid-{rank}").read_text()) for rank in (0, 1)]
    recipe = load_recipe(tmp_path / "tiny.yaml", [f"training.output_dir={run}"])
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(AlignkitError, match=f"another run is at work in .*process {workers[0]} on "):
            run_recipe(recipe, **how)
    torchrun.kill()
    torchrun.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    orphans = [pid for pid in workers if alive(pid)]
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    assert orphans == []
    (saved,) = newest_last(run)
    assert choose_checkpoint(run).checkpoint == saved and not (run / LOCK).exists()
    said, _ = torchrun.communicate()
    assert f"interrupted; {saved.name} is saved" in said
