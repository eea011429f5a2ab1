"""What a checkpoint holds beside the model, so that a resumed run is the run that was not interrupted.

The critic, the KL controller, the rollout in use and the place in it, the order of the data, the rewards' state.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from trl.trainer.utils import RepeatSampler

from alignkit.errors import AlignkitError
from alignkit.models.value_head import HEAD_NAME, is_critics, restore_value_head, save_value_head, split_head
from alignkit.trainers.learned_callback import RewardStateCallback
from alignkit.trainers.whole_checkpoints import WholeCheckpointsMixin

STATE_FILE = "alignkit_state.pt"
ROLLOUT_FILE = "rollout_{rank}.pt"
_TEXTS = ("prompt", "completion", "advantages")  # of the completions table, which samples are taken from


class ResumableSampler(RepeatSampler):
    """TRL's sampler, whose order in epoch n does not depend on the epochs before having been walked through.

    Args:
        epoch: says which epoch (from 0) begins.
        settings: of `RepeatSampler`.
    """

    def __init__(self, epoch: Callable[[], int], **settings: Any):
        super().__init__(**settings)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            # as TRL draws them: one permutation after the other from one generator
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


class CheckpointsMixin(WholeCheckpointsMixin):
    """Saves the value head in a file of its own, beside a model folder that plain transformers loads without a word."""

    _buffered_inputs: Any  # the micro-batches of the rollout in use, None before the first
    _step: int  # micro-batches so far, as TRL counts them

    def _get_train_sampler(self: Any, dataset: Any = None) -> ResumableSampler:
        data = self.train_dataset if dataset is None else dataset
        prompts = self.args.generation_batch_size // self.num_generations
        repeats = self.num_iterations * self.args.steps_per_generation
        steps_per_epoch = len(data) // prompts * repeats // self.args.gradient_accumulation_steps
        return ResumableSampler(
            epoch=lambda: self.state.global_step // steps_per_epoch,
            data_source=data,
            mini_repeat_count=self.num_generations,
            batch_size=prompts,
            repeat_count=repeats,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _save(self: Any, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        model, adapted = _holder(self)
        if model is None:
            super()._save(output_dir, state_dict=state_dict)
            return
        head, policy = split_head(model.state_dict() if state_dict is None or adapted else state_dict)
        super()._save(output_dir, state_dict=state_dict if adapted else policy)
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

    def save_beside(self: Any, folder: Path) -> None:
        """What a resumed run needs beside the host's files."""
        if self.args.should_save:
            torch.save({"kl_controller": self.kl_controller.state_dict(), "step": self._step}, folder / STATE_FILE)
        self.accelerator.wait_for_everyone()  # for the folder
        rollout = {
            "processes": self.accelerator.num_processes,
            "micro_batches": send_to_device(self._buffered_inputs, "cpu"),
            "used": self._since_sampling,
            "stop": self._stop_rollout,
            "metrics": {key: list(values) for key, values in self._metrics["train"].items()},
            "texts": {key: list(self._logs[key]) for key in _TEXTS},
            "scores": {name: list(scores) for name, scores in self._logs["rewards"].items()},
        }
        torch.save(rollout, folder / ROLLOUT_FILE.format(rank=self.accelerator.process_index))

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            self._load_state(Path(checkpoint))
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, RewardStateCallback):
                    callback.resume_from = checkpoint

    def _load_state(self: Any, checkpoint: Path) -> None:
        file = checkpoint / STATE_FILE
        if not file.is_file():
            raise AlignkitError(
                f"the checkpoint {checkpoint} has no {STATE_FILE}; it was not written by an alignkit trainer. "
                "Start from it as a model instead: pass the folder as `model`"
            )
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.kl_controller.load_state_dict(state["kl_controller"])
        self._step = state["step"]
        mine = checkpoint / ROLLOUT_FILE.format(rank=self.accelerator.process_index)
        rollout: dict[str, Any] = (
            torch.load(mine, map_location="cpu", weights_only=True) if mine.is_file() else {"processes": 0}
        )
        if rollout["processes"] != self.accelerator.num_processes:
            # other shares of a rollout than these processes need: they begin with a new one
            if rollout["processes"]:
                warnings.warn(
                    f"{checkpoint} was written by {rollout['processes']} processes and is continued by "
                    f"{self.accelerator.num_processes}: the rollout in use is dropped, and batches have another size",
                    stacklevel=2,
                )
            self._buffered_inputs = None
            return
        self._buffered_inputs = send_to_device(rollout["micro_batches"], self.accelerator.device)
        self._since_sampling, self._stop_rollout = rollout["used"], rollout["stop"]
        for key, values in rollout["metrics"].items():
            self._metrics["train"][key] = values
        for key, values in rollout["texts"].items():
            self._logs[key].extend(values)
        for name, values in rollout["scores"].items():
            self._logs["rewards"][name].extend(values)

    def _take_as_end(self: Any, checkpoint: str) -> Any:
        taken = super()._take_as_end(checkpoint)
        self._load_state(Path(checkpoint))
        return taken

    def restore(self: Any, checkpoint: str) -> None:
        """Go back to a checkpoint in the middle of a run: weights, critic, optimiser, scheduler, KL coefficient and
        rewards. The step count goes on, with a new rollout. For health checks that roll back."""
        step, metrics = self._step, self._metrics["train"].copy()
        # as the host calls it: the wrapper only where it is sharded, for DDP's has other names for every weight
        self._load_from_checkpoint(checkpoint, model=self.model_wrapped if self.is_fsdp_enabled else None)
        self._load_optimizer_and_scheduler(checkpoint)
        self._step, self._buffered_inputs = step, None
        self._metrics["train"].update(metrics)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, RewardStateCallback):
                callback.restore(Path(checkpoint))
                callback.resume_from = None


def _holder(trainer: Any) -> tuple[Any, bool]:
    """The model whose value head needs a file of its own, and whether it sits inside an adapter; None where there is no
    head, or where the adapter's checkpoint carries it already, among its `modules_to_save`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapted = hasattr(model, "peft_config")
    base = model.get_base_model() if adapted else model
    head = getattr(base, HEAD_NAME, None)
    return (None if head is None or hasattr(head, "modules_to_save") else base), adapted
