"""The one callback that owns rewards which change: it updates, saves and restores them, for our trainers and TRL's."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from alignkit.errors import AlignkitError
from alignkit.reward import learned_rewards, stateful_rewards

FOLDER = "rewards"


class RewardStateCallback(TrainerCallback):
    """Updates each `LearnedReward` at the end of every optimiser step, and keeps all rewards' state in checkpoints.

    Our trainers add it by themselves. For TRL's, pass it in `callbacks`:
    `GRPOTrainer(..., reward_funcs=[reward], callbacks=[RewardStateCallback([reward])])`.

    A learned reward is updated on what it scored in training since the last update: it remembers those completions by
    itself in `__call__` (TRL tells a callback nothing about them), and `update` is called with what `pending()` returns,
    if it has that method, or with empty lists.

    Args:
        rewards: the rewards given to the trainer; compositions are searched.
        processing_class: unused by the callback, kept for rewards that ask for it through `prepare`.
    """

    def __init__(self, rewards: Any, processing_class: PreTrainedTokenizerBase | None = None):
        self.learned = learned_rewards(rewards)
        self.stateful = stateful_rewards(rewards)
        self.processing_class = processing_class
        self.last: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for reward in self.stateful.values():
            reward.train()
        if state.global_step:
            self.restore(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for key, reward in self.stateful.items():
            if not any(reward is learned for learned in self.learned):
                continue
            pending = reward.pending() if hasattr(reward, "pending") else ([], [], [])
            for name, value in reward.update(*pending).items():
                self.last[f"{key}/{name}"] = float(value)

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

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.save(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def save(self, checkpoint: Path) -> None:
        """Write each reward's state to `checkpoint/rewards/<key>.pt`."""
        (checkpoint / FOLDER).mkdir(parents=True, exist_ok=True)
        for key, reward in self.stateful.items():
            torch.save(reward.state_dict(), checkpoint / FOLDER / f"{key}.pt")

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
