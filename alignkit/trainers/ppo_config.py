"""Settings of `PPOTrainer`, named as in the PPOConfig that TRL had until 1.12 where it had them."""

from dataclasses import dataclass, field

from alignkit.trainers.on_policy_config import OnPolicyConfig, Range
from alignkit.trainers.trl_ppo import OLDER_SETTINGS, SETTINGS, advice


@dataclass
class PPOConfig(OnPolicyConfig):
    """Settings of `PPOTrainer`; those of `OnPolicyConfig` and TRL's `GRPOConfig` come before them.

    Args:
        num_iterations: passes over each rollout (PPO epochs).
        cliprange: the probability ratio is clipped to 1 +- this.
        cliprange_value: a value may move this far from the one seen while sampling; None does not clip.
        vf_coef: weight of the value loss.
        lam: lambda of generalised advantage estimation.
        value_warmup_steps: optimiser steps at the start in which only the critic learns.
        separate_critic: a trunk of its own for the critic, instead of the policy's.
        entropy_coef: weight of an entropy bonus.
        ptx_coef: weight of the likelihood of `ptx_dataset`'s text (InstructGPT's gamma); 0 leaves it out.
        ptx_column: column of `ptx_dataset` with the text; with a `prompt` column beside it, the text continues it.
        ptx_max_length: tokens of a ptx text that are used.
    """

    num_iterations: int = field(default=4, metadata={"help": "Passes over each rollout (PPO epochs)."})
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the probability ratio."})
    cliprange_value: float | None = field(default=0.2, metadata={"help": "Clip range of the value; None: no clipping."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    value_warmup_steps: int = field(default=0, metadata={"help": "First steps in which only the critic learns."})
    separate_critic: bool = field(default=False, metadata={"help": "Give the critic a trunk of its own."})
    ptx_coef: float = field(default=0.0, metadata={"help": "Weight of the likelihood of ptx_dataset's text."})
    ptx_column: str = field(default="text", metadata={"help": "Column of ptx_dataset with the text."})
    ptx_max_length: int = field(default=64, metadata={"help": "Tokens of a ptx text that are used."})

    moved = advice({**SETTINGS, **OLDER_SETTINGS})
    _ranges = {  # noqa: RUF012  (a table for all, no setting)
        **OnPolicyConfig._ranges,
        "cliprange": Range(above=True, advice="0.2 is usual"),
        "cliprange_value": Range(above=True, optional=True, advice="None does not clip"),
        "vf_coef": Range(advice="0 teaches the critic nothing"),
        "lam": Range(high=1, advice="0 trusts the critic, 1 the return"),
        "value_warmup_steps": Range(whole=True),
        "ptx_coef": Range(advice="0 leaves the ptx text out"),
        "ptx_max_length": Range(low=2, whole=True, advice="of a text without a prompt the first token is given"),
    }

    def _contradictions(self) -> list[str]:
        problems = super()._contradictions()
        if self.rl_weight != 1:
            problems.append(
                f"rl_weight={self.rl_weight} is REINFORCE's hybrid objective; with PPO use ptx_coef and a ptx_dataset"
            )
        if self.value_warmup_steps and self.deepspeed_plugin is not None:
            problems.append(
                f"value_warmup_steps={self.value_warmup_steps} holds gradients back from the optimiser, and DeepSpeed "
                "keeps them where nothing else reaches; leave it out"
            )
        return problems
