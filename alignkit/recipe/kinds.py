"""The trainers that a recipe can name, each with its config class. Nothing is imported before it is asked for."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class TrainerKind:
    """One value of a recipe's `trainer` key.

    Attributes:
        trainer: where the trainer class is, `module:Class`.
        config: where its config dataclass is; the recipe's `training` holds that class's fields.
        summary: one line for listings.
        family: `on_policy` samples and is rewarded; `sft`, `seq2seq` and `classifier` learn from examples.
        own: whether the trainer is alignkit's (takes `metrics`, `ref_model`, `decoder`) or a host library's.
    """

    trainer: str
    config: str
    summary: str
    family: str
    own: bool = False

    def trainer_class(self) -> type:
        """Imports the trainer class."""
        return _import(self.trainer)

    def config_class(self) -> type:
        """Imports the config dataclass."""
        return _import(self.config)


TRAINERS = {
    "ppo": TrainerKind(
        "alignkit.trainers.ppo:PPOTrainer",
        "alignkit.trainers.ppo_config:PPOConfig",
        "PPO with a value head, per-token KL in the reward and GAE",
        "on_policy",
        own=True,
    ),
    "reinforce": TrainerKind(
        "alignkit.trainers.reinforce:ReinforceTrainer",
        "alignkit.trainers.reinforce:ReinforceConfig",
        "REINFORCE with a batch, leave-one-out or learned baseline",
        "on_policy",
        own=True,
    ),
    "cooperative": TrainerKind(
        "alignkit.trainers.cooperative:CooperativeTrainer",
        "alignkit.trainers.cooperative_config:CooperativeConfig",
        "weighted likelihood on samples of policy times reward: GCN, and GAN, ColdGAN and SelfGAN by settings",
        "on_policy",
        own=True,
    ),
    "grpo": TrainerKind("trl:GRPOTrainer", "trl:GRPOConfig", "TRL's GRPO, unchanged", "on_policy"),
    "rloo": TrainerKind("trl:RLOOTrainer", "trl:RLOOConfig", "TRL's leave-one-out REINFORCE, unchanged", "on_policy"),
    "sft": TrainerKind("trl:SFTTrainer", "trl:SFTConfig", "TRL's supervised fine-tuning (or pretraining)", "sft"),
    "seq2seq": TrainerKind(
        "transformers:Seq2SeqTrainer",
        "transformers:Seq2SeqTrainingArguments",
        "transformers' Seq2SeqTrainer on an encoder-decoder, from prompts to references",
        "seq2seq",
    ),
    "classifier": TrainerKind(
        "transformers:Trainer",
        "transformers:TrainingArguments",
        "transformers' Trainer on a sequence classifier",
        "classifier",
    ),
}


def _import(target: str) -> Any:
    module, name = target.split(":")
    return getattr(import_module(module), name)
