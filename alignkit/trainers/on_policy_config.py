"""Settings that every on-policy trainer shares: TRL's `GRPOConfig`, less what only GRPO's loss reads, plus ours."""

from dataclasses import MISSING, dataclass, field, fields

import torch
from trl import GRPOConfig

from alignkit.advantages import KL_ESTIMATORS
from alignkit.errors import ConfigError

# What GRPO's own loss reads and these trainers do not: set, they would silently do nothing, so they are refused.
_GRPO_ONLY = {
    "beta": "kl_coef (the KL penalty is part of the reward here)",
    "epsilon": "cliprange",
    "epsilon_high": "cliprange",
    "delta": "cliprange",
    "loss_type": None,
    "scale_rewards": "whiten_advantages",
    "importance_sampling_level": None,
    "multi_objective_aggregation": "reward_weights",
    "top_entropy_quantile": "entropy_coef",
    "use_adaptive_entropy": "entropy_coef",
    "entropy_coef_min": "entropy_coef",
    "entropy_coef_max": "entropy_coef",
    "entropy_coef_delta": "entropy_coef",
    "entropy_target": "entropy_coef",
    "off_policy_mask_threshold": "target_kl_stop",
    "use_bias_correction_kl": "kl_estimator",
    "sapo_temperature_neg": None,
    "sapo_temperature_pos": None,
    "vespo_k_pos": None,
    "vespo_lambda_pos": None,
    "vespo_k_neg": None,
    "vespo_lambda_neg": None,
    "sync_ref_model": None,
    "ref_model_mixup_alpha": None,
    "ref_model_sync_steps": None,
    "cast_lm_head_to_fp32": None,
    "max_tool_calling_iterations": None,
    "use_transformers_continuous_batching": None,
    "transformers_continuous_batching_config": None,
    "use_transformers_paged": None,
    "vllm_importance_sampling_cap": None,
    "vllm_importance_sampling_clip_max": None,
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_correction": None,
    "vllm_importance_sampling_mode": None,
    "mask_truncated_completions": None,
    "cache_implementation": None,
    "router_aux_loss_coef": None,
    "log_multimodal": None,
}
# TRL turns these on or off for GRPO by default; a value equal to the default is not a choice of the user's.
_ALLOWED_DEFAULTS = {"log_multimodal": True}


@dataclass
class OnPolicyConfig(GRPOConfig):
    """Settings of `OnPolicyTrainer`; REINFORCE and PPO add theirs.

    One optimiser step sees `per_device_train_batch_size * gradient_accumulation_steps` completions on each process.
    `steps_per_generation` (default: `gradient_accumulation_steps`) such micro-batches are sampled at once, and each
    rollout is used for `num_iterations` passes. `max_steps` counts optimiser steps.

    Differences from TRL's defaults: `bf16` is on only where a GPU supports it, `gradient_checkpointing` is off,
    dropout is off (so that scoring sees the model that sampled), `num_generations` may be 1.

    Args:
        kl_coef: weight of the KL penalty against the reference, taken off each token's reward.
        kl_estimator: `k1`, `k2` or `k3`, see `alignkit.advantages.kl_estimate`.
        kl_target: KL per response (nats) that an adaptive coefficient holds; None keeps `kl_coef` fixed.
        kl_horizon: completions over which the adaptive coefficient adapts.
        gamma: discount per token.
        whiten_rewards: scale the per-token rewards of each rollout to variance 1 (the mean stays).
        whiten_advantages: scale the advantages of each rollout to mean 0 and variance 1.
        target_kl_stop: sample anew, without finishing `num_iterations`, once the policy is this far (nats per
            token) from the one that sampled.
        reference_column: data column with the text that metrics and the MLE term take as reference.
        value_learning_rate: learning rate of the critic (value head, learned baseline, separate critic); None takes the
            policy's, which is usually far too slow for a head that starts from nothing.
        rl_weight: lambda in `lambda * RL loss + (1 - lambda) * MLE of the reference` (hybrid training); 1 is pure RL.
        eval_seed: seed of sampling in evaluation; it does not disturb training.
        eval_temperature: sampling temperature in evaluation; None takes `temperature`.
        eval_samples: at most this many held-out prompts are used; None takes all.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate of AdamW."})
    num_generations: int | None = field(default=1, metadata={"help": "Completions sampled for each prompt."})
    bf16: bool | None = field(default=None, metadata={"help": "bf16 autocast; by default where a GPU supports it."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade compute for memory."})
    disable_dropout: bool = field(default=True, metadata={"help": "Switch dropout off in policy and reference."})
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL penalty in the reward."})
    kl_estimator: str = field(default="k1", metadata={"help": "Estimator of the penalty: k1, k2 or k3."})
    kl_target: float | None = field(default=None, metadata={"help": "Nats per response that kl_coef adapts to hold."})
    kl_horizon: float = field(default=10_000, metadata={"help": "Completions over which kl_coef adapts."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale per-token rewards to variance 1."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Scale advantages to mean 0, variance 1."})
    target_kl_stop: float | None = field(default=None, metadata={"help": "Nats per token that end a rollout's use."})
    reference_column: str = field(default="reference", metadata={"help": "Column with the reference text."})
    value_learning_rate: float | None = field(default=1e-3, metadata={"help": "Learning rate of the critic."})
    rl_weight: float = field(default=1.0, metadata={"help": "Weight of the RL loss; the rest goes to the MLE loss."})
    eval_seed: int = field(default=1234, metadata={"help": "Seed of sampling in evaluation."})
    eval_temperature: float | None = field(default=None, metadata={"help": "Temperature in evaluation."})
    eval_samples: int | None = field(default=None, metadata={"help": "At most this many held-out prompts."})

    def __post_init__(self) -> None:
        self._refuse_grpo_only()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.pad_to_multiple_of == "auto":
            self.pad_to_multiple_of = None
        self.num_generations_eval = self.num_generations_eval or 1
        # GRPOConfig's own check demands two generations a prompt, which only group baselines need: go past it
        super(GRPOConfig, self).__post_init__()
        self._derive_batches()
        self._check()

    def _refuse_grpo_only(self) -> None:
        problems = []
        for declared in fields(self):
            if declared.name not in _GRPO_ONLY:
                continue
            default = declared.default if declared.default is not MISSING else None
            given = getattr(self, declared.name)
            if given not in (default, _ALLOWED_DEFAULTS.get(declared.name, default)):
                instead = _GRPO_ONLY[declared.name]
                advice = f"; use {instead}" if instead else "; leave it out"
                problems.append(f"{declared.name}={given!r} belongs to GRPO's loss and has no effect here{advice}")
        if problems:
            raise ConfigError("; ".join(problems))

    def _derive_batches(self) -> None:
        micro = self.per_device_train_batch_size * self.world_size
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            raise ConfigError(
                f"generation_batch_size={self.generation_batch_size} and "
                f"steps_per_generation={self.steps_per_generation} say the same thing twice; give one of them"
            )
        if self.generation_batch_size is None:
            self.steps_per_generation = self.steps_per_generation or self.gradient_accumulation_steps
            self.generation_batch_size = micro * self.steps_per_generation
        elif self.generation_batch_size % micro:
            raise ConfigError(
                f"generation_batch_size={self.generation_batch_size} must be a multiple of {micro} "
                "(per_device_train_batch_size times the number of processes)"
            )
        else:
            self.steps_per_generation = self.generation_batch_size // micro
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ConfigError(
                f"steps_per_generation={self.steps_per_generation} must be a multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: an optimiser step is made of "
                "completions of one rollout"
            )
        if self.num_generations < 1 or self.generation_batch_size % self.num_generations:
            raise ConfigError(
                f"num_generations={self.num_generations} must be at least 1 and divide the "
                f"{self.generation_batch_size} completions that are sampled at once (per_device_train_batch_size * "
                "steps_per_generation * number of processes)"
            )

    def _check(self) -> None:
        problems = []
        if self.kl_estimator not in KL_ESTIMATORS:
            problems.append(f"kl_estimator={self.kl_estimator!r}; expected one of {', '.join(KL_ESTIMATORS)}")
        if not 0 <= self.rl_weight <= 1:
            problems.append(f"rl_weight={self.rl_weight}; expected a share between 0 and 1")
        if self.temperature <= 0:
            problems.append(f"temperature={self.temperature}; expected a positive number")
        for name in ("kl_target", "kl_horizon", "target_kl_stop", "eval_samples", "max_completion_length"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                problems.append(f"{name}={value}; expected a positive number or None")
        if self.use_vllm and self.kl_coef < 0:
            problems.append(f"kl_coef={self.kl_coef}; expected 0 or more")
        if problems:
            raise ConfigError("; ".join(problems))
