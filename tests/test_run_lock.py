"""One run at a time in a folder: a second one is refused while the first lives, and only as long as it lives."""

import errno
import json
import os
import signal
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_checkpoints import names, ppo
from test_interruption import RECIPE

from alignkit import run_lock
from alignkit.errors import AlignkitError, ConfigError
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.run_lock import LOCK, only_run_in


class Other:
    """Another process that holds the lock of a folder, and a child that it forked then, such as one that loads data."""

    def __init__(self, folder: Path):
        ready, told = os.pipe()
        wait, self.end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.end)
                with only_run_in(folder):
                    if os.fork() == 0:
                        os.read(wait, 1)
                        os._exit(0)
                    os.write(told, b"!")
                    signal.pause()
            finally:
                os._exit(1)
        os.close(wait)
        assert os.read(ready, 1) == b"!"
        os.close(ready)
        os.close(told)

    def kill(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def close(self):
        self.kill()
        os.close(self.end)  # the child of the process that was killed reads this


@contextmanager
def other_run(folder: Path):
    other = Other(folder)
    try:
        yield other
    finally:
        other.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_second_is_refused_until_the_first_is_killed(tmp_path):
    folder = tmp_path / "run"
    with other_run(folder) as other:
        who = rf"process {other.pid} on {socket.gethostname()}, since \d{{4}}-\d\d-\d\d "
        with (
            pytest.raises(AlignkitError, match=rf"at work in .*run: {who}.* `kill {other.pid}` .* another output_dir"),
            only_run_in(folder),
        ):
            pytest.fail("two at once")
        assert json.loads((folder / LOCK).read_text())["pid"] == other.pid, "the refused one leaves it as it is"
        other.kill()
        assert (folder / LOCK).is_file()
        with only_run_in(folder):  # though what the killed process forked lives on
            assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert not (folder / LOCK).exists()


def test_what_was_made_for_the_lock_alone_goes_again(tmp_path):
    with pytest.raises(RuntimeError, match="broken"), only_run_in(tmp_path / "a" / "b"):
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [LOCK]
        raise RuntimeError("broken")
    assert list(tmp_path.iterdir()) == []
    with only_run_in(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]


def test_the_same_run_may_ask_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with only_run_in("run"):
        with only_run_in(tmp_path / "run"):
            pass
        assert Path("run", LOCK).is_file()
    assert not Path("run").exists()


def test_a_lock_that_its_run_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """The first file is removed after it was opened and before it is locked."""
    flock, left = run_lock.fcntl.flock, [tmp_path / LOCK]

    def late(handle, how):
        if left:
            left.pop().unlink()
        flock(handle, how)

    monkeypatch.setattr(run_lock.fcntl, "flock", late)
    with only_run_in(tmp_path):
        assert left == [] and json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("reason", ["no fcntl", "no locks"])
def test_where_nothing_can_be_locked_it_is_said_and_the_run_goes_on(reason, tmp_path, monkeypatch, caplog):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock, "fcntl", None) if reason == "no fcntl" else monkeypatch.setattr(
        run_lock.fcntl, "flock", refuse
    )
    ran = ppo(tmp_path / "run", max_steps=1)
    ran.train()
    assert names(tmp_path / "run") == ["checkpoint-1"]
    (said,) = [record.getMessage() for record in caplog.records if "not guarded" in record.getMessage()]
    assert f"{tmp_path}/run is not guarded against a second run" in said
    assert ("no flock" if reason == "no fcntl" else "No locks available") in said


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"^training.output_dir: nothing can be written to .*file/run"),
        only_run_in(tmp_path / "file" / "run", "training.output_dir"),
    ):
        pytest.fail("not refused")


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_no_recipe_touches_the_folder_of_a_run_that_lives(how, tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    run = tmp_path / "run"
    ppo(run, max_steps=1).train()
    (run / "results.json").write_text("{}")
    with other_run(run) as other:
        before = contents(run)
        recipe = load_recipe(tmp_path / "tiny.yaml", [f"training.output_dir={run}"])
        with pytest.raises(AlignkitError, match=rf"process {other.pid} on .* another training.output_dir$"):
            run_recipe(recipe, **how)
        assert contents(run) == before


def test_a_trainer_that_saves_is_refused_and_goes_on_when_the_other_was_killed(tmp_path):
    ppo(tmp_path, max_steps=1).train()
    with other_run(tmp_path) as other:
        trainer = ppo(tmp_path, max_steps=2)
        with pytest.raises(AlignkitError, match=f"process {other.pid}"):
            trainer.train(resume_from_checkpoint=True)
        assert names(tmp_path) == ["checkpoint-1"]
        ppo(tmp_path, max_steps=1, save_strategy="no").train()  # it writes no checkpoint
        other.kill()
        trainer.train(resume_from_checkpoint=True)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"] and not (tmp_path / LOCK).exists()


@contextmanager
def with_fewer_rights(file: Path, mode: int):
    """The file has these rights and we are not its mighty owner: root becomes another user meanwhile."""
    file.chmod(mode)
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shared():
    """A folder that every user may write to, and reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_the_run_of_another_user_is_named_while_it_lives_and_in_nobodys_way_when_it_was_killed(shared):
    with other_run(shared) as other:
        with (
            with_fewer_rights(shared / LOCK, 0o444),
            pytest.raises(AlignkitError, match=rf"another run .* process {other.pid} on"),
            only_run_in(shared),
        ):
            pytest.fail("two at once")
        other.kill()
        with with_fewer_rights(shared / LOCK, 0o444), only_run_in(shared):
            assert json.loads((shared / LOCK).read_text())["pid"] == os.getpid()
    assert not (shared / LOCK).exists()


def test_a_lock_that_may_not_even_be_read_is_named_with_what_to_do(shared):
    (shared / LOCK).touch()
    with (
        with_fewer_rights(shared / LOCK, 0o000),
        pytest.raises(AlignkitError, match=rf"^output_dir: .*{LOCK} cannot be opened: Permission denied; .* deleted"),
        only_run_in(shared),
    ):
        pytest.fail("not refused")


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(handle, content, place):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_lock.os, "pwrite", full)
    with (
        pytest.raises(AlignkitError, match=rf"{LOCK} cannot be written: No space left on device; make room"),
        only_run_in(tmp_path),
    ):
        pytest.fail("not refused")
    assert list(tmp_path.iterdir()) == [], "nothing is left that would lock"
