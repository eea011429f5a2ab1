"""What a checkpoint holds beside the model: the critic, the KL controller, the rewards' state. Nothing is lost."""

from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from alignkit.errors import AlignkitError
from alignkit.models.value_head import HEAD_NAME, is_critics, restore_value_head, save_value_head, split_head
from alignkit.trainers.learned_callback import RewardStateCallback

STATE_FILE = "alignkit_state.pt"


class CheckpointsMixin:
    """Saves the value head in a file of its own, beside a model folder that plain transformers loads without a word."""

    _buffered_inputs: Any  # the rollout in use, None before the first

    def _save(self: Any, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        model, adapted = _holder(self)
        if model is None:
            super()._save(output_dir, state_dict=state_dict)  # type: ignore[misc]
            return
        head, policy = split_head(model.state_dict() if state_dict is None or adapted else state_dict)
        super()._save(output_dir, state_dict=state_dict if adapted else policy)  # type: ignore[misc]
        if self.args.should_save:  # `Trainer` calls this on every process
            save_value_head(head, output_dir or self.args.output_dir)

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model=model)  # type: ignore[misc]
        self._restore_head(resume_from_checkpoint)

    def _load_best_model(self: Any) -> None:
        super()._load_best_model()  # type: ignore[misc]
        self._restore_head(self.state.best_model_checkpoint)

    def _restore_head(self: Any, folder: str) -> None:
        model, _ = _holder(self)
        if model is not None and not restore_value_head(model, folder):
            raise AlignkitError(
                f"the checkpoint {folder} holds no value head; it was not written by {type(self).__name__}. "
                "Start from it as a model instead: pass the folder as `model`"
            )

    def _issue_warnings_after_load(self: Any, load_result: Any) -> None:
        # the head comes from its own file: the host must not report it missing
        missing = [key for key in load_result.missing_keys if not is_critics(key)]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))  # type: ignore[misc]

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            torch.save({"kl_controller": self.kl_controller.state_dict()}, folder / STATE_FILE)

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            self._load_state(checkpoint)

    def _load_state(self: Any, checkpoint: str) -> None:
        file = Path(checkpoint) / STATE_FILE
        if not file.is_file():
            raise AlignkitError(
                f"the checkpoint {checkpoint} has no {STATE_FILE}; it was not written by an alignkit trainer. "
                "Start from it as a model instead: pass the folder as `model`"
            )
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.kl_controller.load_state_dict(state["kl_controller"])

    def restore(self: Any, checkpoint: str) -> None:
        """Go back to a checkpoint in the middle of a run: weights, critic, optimiser, scheduler, KL coefficient and
        rewards. The step count goes on. For health checks that roll back."""
        self._load_from_checkpoint(checkpoint, model=self.model_wrapped)
        self._load_optimizer_and_scheduler(checkpoint)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, RewardStateCallback):
                callback.restore(Path(checkpoint))
        self._buffered_inputs = None


def _holder(trainer: Any) -> tuple[Any, bool]:
    """The model whose value head needs a file of its own, and whether it sits inside an adapter; None where there is no
    head, or where the adapter's checkpoint carries it already, among its `modules_to_save`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapted = hasattr(model, "peft_config")
    base = model.get_base_model() if adapted else model
    head = getattr(base, HEAD_NAME, None)
    return (None if head is None or hasattr(head, "modules_to_save") else base), adapted
