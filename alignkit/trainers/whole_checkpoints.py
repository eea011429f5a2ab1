"""Every trainer's checkpoints, whole or not there: a save that is cut off is never loaded, nor costs the one before.

transformers writes file after file into `checkpoint-N`, deletes older checkpoints, and lets callbacks add theirs:
killed in between, the newest checkpoint is half a one, and it may be the only one. Here all of it is written to
`alignkit_unfinished/checkpoint-N`, with a record of its files; then the folder is moved to its name; then older ones
go.
"""

import functools
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast_object_list
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput, sort_checkpoints

from alignkit.errors import CheckpointError
from alignkit.launcher import end_with_launcher
from alignkit.models.adapters import save_quantization
from alignkit.run_lock import only_run_in
from alignkit.trainers.checkpoint_files import RECORD, choose_checkpoint, fault_of, write_record
from alignkit.trainers.interruption import SaveAfterEpoch, StopOnSignal
from alignkit.trainers.learned_callback import RewardStateCallback
from alignkit.trainers.model_card import ModelCardMixin
from alignkit.whole_files import (
    UNFINISHED,
    discard,
    finish_replacing,
    is_failed_write,
    is_lack_of_room,
    put_in_place,
    readable_size,
    size_of,
)

__all__ = ["WholeCheckpointsMixin", "with_whole_checkpoints"]


class WholeCheckpointsMixin:
    """Writes each checkpoint aside and moves it to its name when it is whole; resumes from whole ones only.

    `train(resume_from_checkpoint=True)` takes the newest whole checkpoint and says which, and what became of a newer
    one. A checkpoint of the last step is loaded as it is; transformers would train a step more.

    Wherever an adapter is saved, how its base was quantised is written beside it.
    """

    _unfinished: Path | None = None  # the checkpoint that is being written
    _push_later = False

    # ---- saving ---------------------------------------------------------------------------------------------------

    def save_beside(self, folder: Path) -> None:
        """Hook: write more into a checkpoint that is being saved. Called on every process."""

    def _save(self: Any, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict=state_dict)  # type: ignore[misc]
        if self.args.should_save:  # `Trainer` calls this on every process
            save_quantization(self.accelerator.unwrap_model(self.model), output_dir or self.args.output_dir)

    def _get_output_dir(self: Any, trial: Any) -> str:
        run = super()._get_output_dir(trial)  # type: ignore[misc]
        return run if self._unfinished is None else os.path.join(run, UNFINISHED)

    def _push_from_checkpoint(self: Any, checkpoint_folder: str) -> None:
        if self._unfinished is None:
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]
        else:
            self._push_later = True  # it is uploaded while training goes on, and would be moved under its hands

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        run = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        new, place = Path(run, UNFINISHED, name), Path(run, name)
        try:
            if self.args.should_save:
                finish_replacing(new.parent.parent)
                shutil.rmtree(new.parent, ignore_errors=True)  # what a killed run left
                new.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._unfinished = new
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self._finish(new, place, os.path.join(run, name))
        except Exception as error:
            if not is_failed_write(error):
                raise
            raise CheckpointError(_cannot_write(place, new, error)) from error
        finally:
            self._unfinished = None
        if self.args.should_save:
            _rotate(place, self.args.save_total_limit, self.state.best_model_checkpoint)
        if self._push_later:
            self._push_later = False
            super()._push_from_checkpoint(str(place))  # type: ignore[misc]

    def _finish(self: Any, new: Path, place: Path, known_as: str) -> None:
        """Add what is ours, and move the checkpoint to its name once every process has written its part."""
        self.save_beside(new)
        best = self.state.best_model_checkpoint
        moves = best is not None and Path(best) == new
        if moves:
            self.state.best_model_checkpoint = known_as
        if self.args.should_save:
            if moves:
                self.state.save_to_json(str(new / TRAINER_STATE_NAME))
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, RewardStateCallback):
                    callback.save(new)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_record(new)
            put_in_place(new, place)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_local_main_process and new.is_dir() and not place.is_dir():
            write_record(new)  # the part of a node whose disk is its own
            put_in_place(new, place)

    # ---- resuming -------------------------------------------------------------------------------------------------

    def train(
        self: Any, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As the host's; where it saves checkpoints, no other run may be at work in the folder.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest whole one in `output_dir`.
            trial: of a search for settings, which has a folder of its own.
            args: further ones of the host's.
            kwargs: further ones of the host's.

        Raises:
            AlignkitError: another run is at work in the folder.
            CheckpointError: there is no whole checkpoint, or the one that was named is damaged; in training, a
                checkpoint could not be written.
        """
        end_with_launcher()
        if not any(isinstance(callback, SaveAfterEpoch) for callback in self.callback_handler.callbacks):
            self.add_callback(SaveAfterEpoch())  # the last, when all others have said whether to save
        saves = self.args.save_strategy != SaveStrategy.NO
        try:
            with only_run_in(self._get_output_dir(trial)) if saves else nullcontext():
                checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
                if checkpoint is not None and self._is_last(checkpoint):
                    return self._take_as_end(checkpoint)
                return super().train(checkpoint, trial, *args, **kwargs)  # type: ignore[misc]
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, StopOnSignal):
                    callback.release()

    def _checkpoint_to_resume(self: Any, asked: str | bool | None) -> str | None:
        if not asked:
            return None
        if self.args.should_save:
            finish_replacing(Path(self.args.output_dir))
        self.accelerator.wait_for_everyone()
        if asked is True:
            # one process looks, so that all take the same
            choice = broadcast_object_list([choose_checkpoint(self.args.output_dir)])[0]
            if choice.checkpoint is None:
                found = "; ".join(choice.remarks) or "there is no checkpoint-*"
                raise CheckpointError(
                    f"nothing to resume in {self.args.output_dir}: {found}. Train without resume_from_checkpoint to "
                    "start from the beginning"
                )
            if self.accelerator.is_main_process:
                print(f"{self.args.output_dir}: {choice.sentence()}")
            return str(choice.checkpoint)
        checkpoint = Path(asked)
        # one without a record comes from another program: who names it knows why
        fault = fault_of(checkpoint) if (checkpoint / RECORD).is_file() else None
        if fault is not None:
            raise CheckpointError(
                f"the checkpoint {checkpoint} is damaged: {fault}. Name an earlier one, or pass True for the newest "
                "whole one in output_dir"
            )
        return str(asked)

    def _issue_warnings_after_load(self: Any, load_result: Any) -> None:
        """The host's, but silent on weights that are missing by name only: those tied to one that was loaded."""
        missing = set(load_result.missing_keys)
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        loaded = {id(weight) for name, weight in weights.items() if name not in missing}
        lost = [name for name in load_result.missing_keys if id(weights.get(name)) not in loaded]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=lost))  # type: ignore[misc]

    def _is_last(self: Any, checkpoint: str) -> bool:
        file = Path(checkpoint, TRAINER_STATE_NAME)
        if not file.is_file():
            return False
        state = TrainerState.load_from_json(str(file))
        if self.args.max_steps > 0 or state.global_step < state.max_steps:
            return bool(0 < self.args.max_steps <= state.global_step)
        *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        return bool(state.global_step >= max_steps)

    def _take_as_end(self: Any, checkpoint: str) -> TrainOutput:
        if self.is_deepspeed_enabled:
            raise CheckpointError(
                f"{checkpoint} is the end of its run, and DeepSpeed loads a checkpoint only to go on from it; raise "
                "max_steps or num_train_epochs, or use what the run saved as its model"
            )
        self.state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        self._load_from_checkpoint(checkpoint)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, RewardStateCallback):
                callback.restore(Path(checkpoint))
                # nobody says that training ends: a kill may have come before this was written
                callback.on_train_end(self.args, self.state, self.control)
        return TrainOutput(self.state.global_step, 0.0, {})

    # ---- being interrupted ----------------------------------------------------------------------------------------

    def _finalize_training(self: Any, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        stopped = [c for c in self.callback_handler.callbacks if isinstance(c, StopOnSignal) and c.signal is not None]
        if not stopped:
            return super()._finalize_training(trial, num_train_samples, start_time)  # type: ignore[misc]
        here = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if fault_of(here) is not None:  # save_strategy=best let only the best be saved
            self._save_checkpoint(self.model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        # else the host would load the best weights, and with save_total_limit=1 delete what was just saved
        best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, None
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)  # type: ignore[misc]
        finally:
            self.state.best_model_checkpoint = best


@functools.cache
def with_whole_checkpoints(trainer_class: type) -> type:
    """A trainer of transformers or TRL whose checkpoints are whole or not there, and whose model card is true.

    It trains as it did.
    """
    if issubclass(trainer_class, WholeCheckpointsMixin):
        return trainer_class
    members = {"__doc__": trainer_class.__doc__, "__module__": trainer_class.__module__}
    return cast(type, type(trainer_class.__name__, (WholeCheckpointsMixin, ModelCardMixin, trainer_class), members))


def _rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Delete older checkpoints down to `limit`; the newest, which is whole, and the best stay."""
    if limit is None or limit <= 0:
        return
    keep = {newest} if best is None else {newest, Path(best)}
    found = [Path(checkpoint) for checkpoint in sort_checkpoints(str(newest.parent), use_mtime=True)]
    found.sort(key=lambda checkpoint: fault_of(checkpoint) is None)  # damaged ones go first
    spare = [checkpoint for checkpoint in found if checkpoint not in keep]
    for checkpoint in spare[: max(len(found) - max(limit, len(keep)), 0)]:
        discard(checkpoint)


def _cannot_write(place: Path, new: Path, error: Exception) -> str:
    """What happened, and how to go on; what was written is removed."""
    written = size_of(new)
    shutil.rmtree(new.parent, ignore_errors=True)
    last = choose_checkpoint(place.parent).checkpoint
    needed = f"more than {readable_size(written)}" if last is None else f"about {readable_size(size_of(last))}"
    room = place.parent
    while not room.exists():
        room = room.parent
    kept = "There is no earlier whole checkpoint" if last is None else f"The last whole checkpoint is {last.name}"
    sizes, advice = "", "See to that"
    if is_lack_of_room(error):
        free = readable_size(shutil.disk_usage(room).free)
        sizes = f"It needs {needed}; {free} are free there without it. "
        advice = "Make room (save_total_limit keeps fewer checkpoints)"
    return (
        f"{place.name} could not be written to {place.parent}: {error}. {sizes}What was written of it is removed. "
        f"{kept}. {advice}, then continue with --resume, in Python with trainer.train(resume_from_checkpoint=True)"
    )
