"""The one callback that owns rewards which change: it updates, saves and restores them, for our trainers and TRL's."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from alignkit.errors import AlignkitError
from alignkit.reward import LearnedReward, learned_rewards, stateful_rewards

FOLDER = "rewards"


def _anyone_has(count: int) -> bool:
    """Whether any process has something to learn from: then all must update, or a collective would hang."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count > 0
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(count, device=device)
    torch.distributed.all_reduce(total)
    return bool(total > 0)


class RewardStateCallback(TrainerCallback):
    """Updates each `LearnedReward` at the end of every optimiser step, and keeps all rewards' state in checkpoints.

    Our trainers add it by themselves. For TRL's, pass it in `callbacks`:
    `GRPOTrainer(..., reward_funcs=[reward], callbacks=[RewardStateCallback([reward])])`.

    A learned reward is updated on what it scored in training since the last update, which it remembers by itself (TRL
    tells a callback nothing of it). A step without new completions (a further pass over a rollout) does not update it.

    Args:
        rewards: the rewards given to the trainer; compositions are searched.
    """

    def __init__(self, rewards: Any):
        self.learned = learned_rewards(rewards)
        self.stateful = stateful_rewards(rewards)
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
            if isinstance(reward, LearnedReward) and _anyone_has(int(reward.has_pending)):
                for name, value in reward.update(*reward.pending()).items():
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
            state.log_history[-1].update(self.last)  # written before callbacks are asked

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
