"""What is refused, kept and advised where a run ends: under DeepSpeed, at its last checkpoint, on a disk that is full
or read-only."""

import errno
import math

import pytest
from test_checkpoints import names, ppo
from test_health import Tamper

import alignkit.trainers.whole_checkpoints as whole_checkpoints
from alignkit.errors import CheckpointError, HealthError
from alignkit.trainers.health import HealthCallback
from alignkit.whole_files import is_failed_write, is_lack_of_room

KL = dict(kl_coef=0.2, kl_target=0.01, kl_horizon=50)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run of three steps, each saved, whose KL coefficient adapts."""
    folder = tmp_path_factory.mktemp("ended")
    trainer = ppo(folder, **KL)
    trainer.train()
    return folder, trainer


def test_the_end_of_a_run_is_no_checkpoint_to_load_under_deepspeed(ended):
    again = ppo(ended[0], **KL)
    again.is_deepspeed_enabled = True
    with pytest.raises(CheckpointError, match=r"checkpoint-3 is the end of its run, and DeepSpeed .*; raise max_steps"):
        again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 0, "nothing was taken from it"


def test_a_run_that_is_taken_at_its_end_has_its_kl_coefficient(ended):
    again = ppo(ended[0], **KL)
    assert again.kl_controller.coef == 0.2 != ended[1].kl_controller.coef
    again.train(resume_from_checkpoint=True)
    assert again.kl_controller.state_dict() == ended[1].kl_controller.state_dict()


def test_under_deepspeed_a_run_that_would_go_back_stops_and_says_why(tmp_path):
    trainer = ppo(tmp_path, Tamper({3: {"loss": math.nan}}), max_steps=4)
    health = HealthCallback(tmp_path)
    health.attach(trainer)
    trainer.add_callback(health)
    trainer.restore = lambda checkpoint: pytest.fail("it went back")

    def as_under_deepspeed(finding, args, state):
        trainer.is_deepspeed_enabled = True  # what trains here would not know what to do with it
        act(finding, args, state)

    act, health._act = health._act, as_under_deepspeed
    with pytest.raises(
        HealthError, match=r"No way back: under DeepSpeed a checkpoint is loaded only when a run begins"
    ):
        trainer.train()
    assert health.rollbacks == 0 and names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def refused_with(error, folder, monkeypatch) -> str:
    """What is said when the second checkpoint cannot be written for this reason."""
    put_in_place = whole_checkpoints.put_in_place

    def refuse(new, place):
        if place.name == "checkpoint-2":
            raise error
        put_in_place(new, place)

    monkeypatch.setattr(whole_checkpoints, "put_in_place", refuse)
    with pytest.raises(CheckpointError) as caught:
        ppo(folder).train()
    assert caught.value.__cause__ is error and names(folder) == ["checkpoint-1"]
    said = str(caught.value)
    assert said.startswith(f"checkpoint-2 could not be written to {folder}: {error}. ")
    assert "The last whole checkpoint is checkpoint-1. " in said
    return said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_to_be_emptied(number, tmp_path, monkeypatch):
    said = refused_with(OSError(number, "full"), tmp_path, monkeypatch)
    assert "It needs about " in said and " are free there without it. " in said
    assert "Make room (save_total_limit keeps fewer checkpoints), then continue with --resume" in said


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_became_read_only_is_not_to_be_emptied(number, tmp_path, monkeypatch):
    said = refused_with(OSError(number, "not to be written"), tmp_path, monkeypatch)
    assert "See to that, then continue with --resume" in said
    assert "room" not in said and "free" not in said and "needs" not in said


@pytest.mark.parametrize(
    "error, failed, full",
    [
        (OSError(errno.ENOSPC, "x"), True, True),
        (OSError(errno.EROFS, "x"), True, False),
        (PermissionError(errno.EACCES, "x"), True, False),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), True, True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), True, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
    ],
)
def test_what_is_a_write_that_failed_and_what_a_lack_of_room(error, failed, full):
    assert (is_failed_write(error), is_lack_of_room(error)) == (failed, full)
