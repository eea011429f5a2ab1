"""A folder that takes the place of another one: killed between the two moves that it needs, neither is lost."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from test_checkpoints import names, ppo

from alignkit.run.folder import RunFolder
from alignkit.trainers.checkpoint_files import choose_checkpoint, fault_of
from alignkit.whole_files import UNFINISHED, finish_replacing, put_in_place


def killed_in(work, move: int) -> None:
    """Does `work` in a process that gets SIGKILL as it is about to make its `move`-th move."""
    child = os.fork()
    if child == 0:
        left = move

        def count(event: str, arguments: tuple) -> None:
            nonlocal left
            left -= event == "os.rename"
            if event == "os.rename" and left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def folder_with(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(text)
    return path


@pytest.mark.parametrize("move, found", [(1, "old"), (2, "new")])
def test_killed_before_either_move_a_whole_folder_bears_the_name_at_the_next_start(move, found, tmp_path):
    place, new = folder_with(tmp_path / "model", "old"), folder_with(tmp_path / UNFINISHED / "model", "new")
    killed_in(lambda: put_in_place(new, place), move)
    assert place.exists() == (move == 1)
    finish_replacing(tmp_path)
    assert (place / "file").read_text() == found


def test_where_nothing_was_cut_nothing_moves(tmp_path):
    finish_replacing(tmp_path / "nowhere")
    unfinished = folder_with(tmp_path / UNFINISHED / "checkpoint-1", "half")
    finish_replacing(tmp_path)
    assert unfinished.is_dir() and [path.name for path in tmp_path.iterdir()] == [UNFINISHED]


def test_what_was_replaced_long_ago_gives_its_name_to_nothing_half_written(tmp_path):
    folder_with(tmp_path / UNFINISHED / "replaced-checkpoint-2", "old")  # could not be deleted
    place = folder_with(tmp_path / "checkpoint-2", "new")
    finish_replacing(tmp_path)
    shutil.rmtree(place)
    folder_with(tmp_path / UNFINISHED / "checkpoint-2", "half")
    finish_replacing(tmp_path)
    assert not place.exists()


@pytest.fixture
def cut(tmp_path):
    """A run that was killed while its only checkpoint was saved again."""
    run = tmp_path / "run"
    ppo(run, max_steps=2).train()
    shutil.copytree(run / "checkpoint-2", run / UNFINISHED / "checkpoint-2")
    shutil.rmtree(run / "checkpoint-1")
    killed_in(lambda: put_in_place(run / UNFINISHED / "checkpoint-2", run / "checkpoint-2"), 2)
    assert names(run) == [] and choose_checkpoint(run).checkpoint is None
    return run


def test_a_trainer_goes_on_from_it(cut, capsys):
    trainer = ppo(cut, save_total_limit=1)
    trainer.train(resume_from_checkpoint=True)
    assert f"{cut}: continuing from checkpoint-2\n" in capsys.readouterr().out
    assert trainer.state.global_step == 3 and names(cut) == ["checkpoint-3"] and not (cut / UNFINISHED).exists()


def test_the_next_save_does_not_delete_it(cut):
    ppo(cut, max_steps=1).train()
    assert names(cut) == ["checkpoint-1", "checkpoint-2"] and fault_of(cut / "checkpoint-2") is None


def test_the_command_finds_it_too(cut):
    assert RunFolder.open(cut, resume=True).checkpoint == cut / "checkpoint-2"
