"""The one callback that owns rewards which change: it updates, saves and restores them, for our trainers and TRL's."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from alignkit.errors import AlignkitError
from alignkit.models.locating import RUN_REWARDS
from alignkit.reward import LearnedReward, stateful_rewards, walk_rewards
from alignkit.trainers.checkpoint_files import RECORD
from alignkit.trainers.ended_rewards import write_ended

FOLDER = RUN_REWARDS
FIGURES = "figures.json"  # of the last update, which steps without one log again


def _of_all_processes(pending: tuple[list, list, list]) -> tuple[list, list, list]:
    """The completions of every process, in the order of the processes; the same lists everywhere."""
    rows = gather_object(list(zip(*pending, strict=True)))
    prompts, completions, references = zip(*rows, strict=True) if rows else ((), (), ())
    return list(prompts), list(completions), list(references)


def _write(reward: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(reward.state_dict(), file)


class RewardStateCallback(TrainerCallback):
    """Updates each `LearnedReward` at the end of every optimiser step, and keeps all rewards' state in checkpoints.

    Our trainers add it by themselves. For TRL's, pass it in `callbacks`:
    `GRPOTrainer(..., reward_funcs=[reward], callbacks=[RewardStateCallback([reward])])`.

    A learned reward is updated on what it scored in training since the last update, which it remembers by itself (TRL
    tells a callback nothing of it). A step without new completions (a further pass over a rollout) does not update it.
    Between two steps rewards are in evaluation mode, so that no trainer's `evaluate` teaches them.

    With several processes the copies begin with the main process's state and learn from the completions of all of them,
    with the same random numbers: they stay equal, and one of them is the checkpoint.

    When training ends, a reward with `save_pretrained(folder)` is saved as a model in `rewards/<key>` of the run, and
    the state of every other, and of what is inside a composition, as `rewards/<key>.pt`: `alignkit evaluate` of the run
    asks them as they ended.

    Args:
        rewards: the rewards given to the trainer; compositions are searched.
        resume_from: the checkpoint whose reward states a resumed run begins with; by default the one of the resumed
            step in the run's `output_dir`. Our trainers set it by themselves.
        at_step_end: False leaves the time of the update to who calls `update_now`.
    """

    def __init__(self, rewards: Any, resume_from: str | Path | None = None, at_step_end: bool = True):
        self.rewards = rewards if isinstance(rewards, (list, tuple)) else [rewards]
        self.stateful = stateful_rewards(self.rewards)
        self.resume_from = resume_from
        self.at_step_end = at_step_end
        self.last: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            here = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.restore(Path(self.resume_from or here))
        elif PartialState().num_processes > 1:
            for reward in self.stateful.values():
                reward.load_state_dict(broadcast_object_list([reward.state_dict()])[0])
        self._train(False)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._train(True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.at_step_end:
            self.update_now(args.seed + state.global_step)
        self._train(False)

    def update_now(self, seed: int, times: int = 1) -> None:
        """Update each learned reward on what it remembers, all processes together; the figures of the first update, of
        what it did not know, are then in `last`.

        Args:
            seed: of the random numbers of the update, the same on all processes.
            times: how often `update` gets the same completions.
        """
        for key, reward in self.stateful.items():
            if isinstance(reward, LearnedReward):
                pending = _of_all_processes(reward.pending())
                if pending[0]:
                    with torch.random.fork_rng():
                        torch.manual_seed(seed)
                        figures = reward.update(*pending)
                        for _ in range(times - 1):
                            reward.update_again(*pending)
                    self.last.update({f"{key}/{name}": float(value) for name, value in figures.items()})

    def _train(self, training: bool) -> None:
        for reward in walk_rewards(self.rewards):
            switch = getattr(reward, "train" if training else "eval", None)
            if callable(switch):
                switch()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            logs.update(self.last)
            state.log_history[-1].update(self.last)  # written before callbacks are asked

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        # a recorded checkpoint is whole: the trainer saved the rewards in it before it got its name
        if state.is_world_process_zero and not (checkpoint / RECORD).is_file():
            self.save(checkpoint)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            write_ended(self.rewards, Path(args.output_dir))

    def save(self, checkpoint: Path) -> None:
        """Write each reward's state to `checkpoint/rewards/<key>.pt`."""
        for key, reward in self.stateful.items():
            _write(reward, checkpoint / FOLDER / f"{key}.pt")
        if self.stateful:
            (checkpoint / FOLDER / FIGURES).write_text(json.dumps(self.last) + "\n", encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Read them back.

        Raises:
            AlignkitError: the checkpoint lacks a reward's state, which would resume with another reward.
        """
        for key, reward in self.stateful.items():
            file = checkpoint / FOLDER / f"{key}.pt"
            if not file.is_file():
                raise AlignkitError(
                    f"the checkpoint {checkpoint} has no state of reward {key!r} ({file} is missing); resume with the "
                    "rewards that the run was started with"
                )
            reward.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        figures = checkpoint / FOLDER / FIGURES
        if figures.is_file():
            self.last = json.loads(figures.read_text(encoding="utf-8"))
