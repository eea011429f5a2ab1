"""Settings that every on-policy trainer shares: TRL's `GRPOConfig`, less what only GRPO's loss reads, plus ours."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Self

import torch
from trl import GRPOConfig

from alignkit.advantages import KL_ESTIMATORS
from alignkit.errors import ConfigError
from alignkit.settings import argument_problems

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
    "num_generations_eval": "num_generations (a held-out prompt is completed once)",
    "pad_to_multiple_of": None,  # every micro-batch is cut to its own longest row
}
# TRL turns these on or off for GRPO by default; a value equal to the default is not a choice of the user's.
_ALLOWED_DEFAULTS = {"log_multimodal": True, "num_generations_eval": 1, "pad_to_multiple_of": None}


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be.

    Args:
        low: the smallest.
        high: the largest.
        above: `low` itself is too small.
        whole: whole numbers only.
        optional: None will do as well.
        advice: what to set instead.
    """

    low: float = 0
    high: float = math.inf
    above: bool = False
    whole: bool = False
    optional: bool = False
    advice: str = ""

    def problem(self, name: str, value: object) -> str | None:
        """What is wrong with the setting `name`, or None."""
        if value is None and self.optional:
            return None
        if isinstance(value, int if self.whole else int | float) and not isinstance(value, bool):
            enough = value > self.low if self.above else value >= self.low
            if enough and value <= self.high and math.isfinite(value):
                return None
        kind = "a whole number" if self.whole else "a number"
        if self.high < math.inf:
            expected = f"{kind} between {self.low} and {self.high}"
        else:
            expected = f"{kind} above {self.low}" if self.above else f"{kind} of {self.low} or more"
        other = " or None" if self.optional else ""
        return f"{name}={value!r}; expected {expected}{other}{self.advice and ': '}{self.advice}"


class KnownSettings:
    """Refuses settings that a config does not have, in the words of a recipe, before Python's own error.

    Attributes:
        moved: names of another library's -> what to do instead, see `alignkit.settings.setting_problems`.
    """

    moved: Mapping[str, str] = MappingProxyType({})

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Raises `ConfigError` with every name that `__init__` does not take."""
        taken = inspect.signature(cls.__init__).parameters
        if problems := argument_problems(cls.__name__, settings, taken, demand=False, moved=cls.moved):
            raise ConfigError("; ".join(problems))
        return super().__new__(cls)


@dataclass
class OnPolicyConfig(KnownSettings, GRPOConfig):
    """Settings of `OnPolicyTrainer`; REINFORCE and PPO add theirs.

    One optimiser step sees `per_device_train_batch_size * gradient_accumulation_steps` completions on each process.
    `steps_per_generation` (default: `gradient_accumulation_steps`) such micro-batches are sampled at once, and each
    rollout is used for `num_iterations` passes. `max_steps` counts optimiser steps.

    Differences from TRL's defaults: `bf16` is on only where a GPU supports it, `gradient_checkpointing` is off,
    dropout is off (so that scoring sees the model that sampled), `num_generations` may be 1. Under DDP each step looks
    for weights that it did not reach (`ddp_find_unused_parameters`), with `gradient_checkpointing` too.

    Args:
        kl_coef: weight of the KL penalty against the reference, taken off each token's reward; 0 leaves it out.
        kl_estimator: `k1`, `k2` or `k3`, see `alignkit.advantages.kl_estimate`.
        kl_target: KL per response (nats) that an adaptive coefficient holds; None keeps `kl_coef` fixed.
        kl_horizon: completions over which the adaptive coefficient adapts.
        gamma: discount per token.
        whiten_rewards: scale the per-token rewards of each rollout to variance 1 (the mean stays).
        whiten_advantages: scale the advantages of each rollout to variance 1 (PPO: to mean 0 too).
        target_kl_stop: sample anew, without finishing `num_iterations`, once the policy is this far (nats per
            token) from the one that sampled.
        max_tokens_per_forward: in an update, at most so many tokens, padding included, go through the model at once: a
            larger micro-batch is worked off in pieces of its rows, with the same gradient and less memory (a row that
            is longer goes alone). For one process. None takes 640 in fp32 on a CPU, where it costs hardly any time,
            and elsewhere the whole micro-batch.
        reference_column: data column with the text that metrics and the MLE term take as reference.
        value_learning_rate: learning rate of the critic (value head, learned baseline, separate critic); None takes the
            policy's, which is usually far too slow for a head that starts from nothing.
        rl_weight: lambda in `lambda * RL loss + (1 - lambda) * MLE of the reference` (hybrid training); 1 is pure RL.
        eval_seed: seed of sampling in evaluation; it does not disturb training.
        eval_temperature: sampling temperature in evaluation; None takes `temperature`, 0 the likeliest token each time.
        eval_samples: at most this many held-out prompts are used; None takes all.
        eval_references: also measure how likely the policy finds the held-out references (`reference_perplexity`).
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
    whiten_advantages: bool = field(default=True, metadata={"help": "Scale advantages to variance 1."})
    target_kl_stop: float | None = field(default=None, metadata={"help": "Nats per token that end a rollout's use."})
    max_tokens_per_forward: int | None = field(default=None, metadata={"help": "Tokens an update works on at once."})
    reference_column: str = field(default="reference", metadata={"help": "Column with the reference text."})
    value_learning_rate: float | None = field(default=1e-3, metadata={"help": "Learning rate of the critic."})
    rl_weight: float = field(default=1.0, metadata={"help": "Weight of the RL loss; the rest goes to the MLE loss."})
    eval_seed: int = field(default=1234, metadata={"help": "Seed of sampling in evaluation."})
    eval_temperature: float | None = field(default=None, metadata={"help": "Temperature in evaluation."})
    eval_samples: int | None = field(default=None, metadata={"help": "At most this many held-out prompts."})
    eval_references: bool = field(default=False, metadata={"help": "Perplexity of held-out references."})

    _ranges = {  # noqa: RUF012  (a table for all, no setting)
        "num_generations": Range(low=1, whole=True),
        "num_iterations": Range(low=1, whole=True),
        "max_completion_length": Range(low=1, whole=True, advice="tokens of the longest completion, such as 256"),
        "temperature": Range(above=True, advice="training samples; a small temperature is nearly greedy"),
        "kl_coef": Range(advice="0 leaves the penalty out; below 0 it would reward leaving the reference"),
        "kl_target": Range(above=True, optional=True, advice="None keeps kl_coef fixed"),
        "kl_horizon": Range(above=True, advice="larger adapts more slowly"),
        "gamma": Range(high=1, advice="1 does not discount"),
        "target_kl_stop": Range(above=True, optional=True, advice="None finishes every pass"),
        "max_tokens_per_forward": Range(low=1, whole=True, optional=True, advice="None: as many as suit the device"),
        "value_learning_rate": Range(above=True, optional=True, advice="None takes the policy's"),
        "entropy_coef": Range(advice="0 leaves the bonus out"),
        "rl_weight": Range(high=1, advice="1 is pure RL, 0 pure likelihood of the reference"),
        "eval_temperature": Range(optional=True, advice="None takes temperature, 0 the likeliest tokens"),
        "eval_samples": Range(low=1, whole=True, optional=True, advice="None takes all prompts"),
    }

    def __post_init__(self) -> None:
        if isinstance(self.pad_to_multiple_of, str) and self.pad_to_multiple_of.lower() in ("auto", "none", "null"):
            self.pad_to_multiple_of = None
        if self.bf16 is None:
            self.bf16 = not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        # GRPOConfig's own check demands two generations a prompt, which only group baselines need: go past it, and keep
        # what it refuses besides in `_refused_by_grpo`
        super(GRPOConfig, self).__post_init__()
        # checkpointing that is reentrant and the search for unused parameters cannot be together
        reentrant = (self.gradient_checkpointing_kwargs or {}).get("use_reentrant")
        if self.ddp_find_unused_parameters is None and not reentrant:
            self.ddp_find_unused_parameters = True
        problems = [*self._grpo_only(), *self._refused_by_grpo(), *self._out_of_range(), *self._derive_batches()]
        problems += self._contradictions()
        if problems:
            raise ConfigError("; ".join(problems))
        self.num_generations_eval = 1

    def _grpo_only(self) -> list[str]:
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
        return problems

    def _refused_by_grpo(self) -> list[str]:
        """What `GRPOConfig` refuses for reasons that hold here as well."""
        problems = []
        parallel = self.parallelism_config
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
            problems.append(
                "parallelism_config splits sequences (cp_size or sp_size above 1), but completions are made inside the "
                "trainer, where the host cannot split them; set cp_size=1 and sp_size=1"
            )
        if self.log_completions_hub_repo is not None and not self.log_completions:
            problems.append(
                f"log_completions_hub_repo={self.log_completions_hub_repo!r} uploads the completions table, but "
                "log_completions is off; set log_completions=True, or leave the repository out"
            )
        if self.auto_find_batch_size:
            problems.append(
                "auto_find_batch_size=True would shrink the batch that a rollout is cut into; leave it out, and lower "
                "per_device_train_batch_size if memory runs out"
            )
        return problems

    def _out_of_range(self) -> list[str]:
        found = (allowed.problem(name, getattr(self, name)) for name, allowed in self._ranges.items())
        return [problem for problem in found if problem]

    def _derive_batches(self) -> list[str]:
        """Fill in `generation_batch_size` and `steps_per_generation`, each from the other."""
        micro = self.per_device_train_batch_size * self.world_size
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            return [
                f"generation_batch_size={self.generation_batch_size} and "
                f"steps_per_generation={self.steps_per_generation} say the same thing twice; give one of them"
            ]
        if self.generation_batch_size is None:
            self.steps_per_generation = self.steps_per_generation or self.gradient_accumulation_steps
            self.generation_batch_size = micro * self.steps_per_generation
        elif self.generation_batch_size % micro:
            return [
                f"generation_batch_size={self.generation_batch_size} must be a multiple of {micro} "
                "(per_device_train_batch_size times the number of processes)"
            ]
        else:
            self.steps_per_generation = self.generation_batch_size // micro
        problems = []
        if self.steps_per_generation % self.gradient_accumulation_steps:
            problems.append(
                f"steps_per_generation={self.steps_per_generation} must be a multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: an optimiser step is made of "
                "completions of one rollout"
            )
        if self.num_generations and self.generation_batch_size % self.num_generations:
            problems.append(
                f"num_generations={self.num_generations} must divide the {self.generation_batch_size} completions that "
                "are sampled at once (per_device_train_batch_size * steps_per_generation * number of processes)"
            )
        return problems

    def _contradictions(self) -> list[str]:
        """What else cannot work; a method adds its own."""
        problems = []
        if self.kl_estimator not in KL_ESTIMATORS:
            problems.append(f"kl_estimator={self.kl_estimator!r}; expected one of {', '.join(KL_ESTIMATORS)}")
        for name in sorted({"temperature", "do_sample", "num_beams"} & set(self.generation_kwargs or {})):
            problems.append(
                f"generation_kwargs={{{name!r}: {self.generation_kwargs[name]!r}}}: completions are scored as samples "
                "at `temperature`, and would be made otherwise; set `temperature` itself and leave this out"
            )
        many = (self.generation_kwargs or {}).get("num_return_sequences")
        if many is not None:
            problems.append(
                f"generation_kwargs={{'num_return_sequences': {many!r}}}: num_generations says how many completions a "
                "prompt has; set that and leave this out"
            )
        return problems
