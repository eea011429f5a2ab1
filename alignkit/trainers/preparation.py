"""What an on-policy trainer checks and builds before TRL's constructor runs: cheap checks first, the model last."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.errors import ConfigError, DataError
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.models.module_reward import ModuleReward
from alignkit.models.reference import frozen_copy
from alignkit.models.scoring import add_scoring
from alignkit.models.value_head import HEAD_NAME, attach_value_head
from alignkit.registry import load_reward
from alignkit.reward import check_columns, granularity, unique_names
from alignkit.trainers.on_policy_config import OnPolicyConfig

if TYPE_CHECKING:
    from alignkit.trainers.on_policy import OnPolicyTrainer


def check_inputs(
    trainer: "OnPolicyTrainer",
    reward_funcs: Any,
    args: OnPolicyConfig,
    train_dataset: Any,
    eval_dataset: Any,
    tokenizers: Any = None,
) -> list[Any]:
    """Refuse what cannot work, before anything expensive is loaded.

    Returns:
        the rewards as a list of callables.
    """
    name = type(trainer).__name__
    if not isinstance(args, trainer.config_class):
        raise ConfigError(f"{name} takes a {trainer.config_class.__name__}, got {type(args).__name__}")
    given = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    if not given or given[0] is None:
        raise ConfigError(f"{name} needs reward_funcs: a reward, or a list of rewards")
    tokenizers = list(tokenizers) if isinstance(tokenizers, (list, tuple)) else [tokenizers] * len(given)
    if len(tokenizers) != len(given):
        raise ConfigError(
            f"reward_processing_classes has {len(tokenizers)} entries for {len(given)} rewards; give one each, None "
            "for a reward that is no module"
        )
    rewards = [_as_reward(reward, tokenizer) for reward, tokenizer in zip(given, tokenizers, strict=True)]
    for reward, log_name in zip(rewards, unique_names(rewards), strict=True):
        if granularity(reward) not in trainer.granularities:
            raise ConfigError(
                f"reward {log_name!r} scores per {granularity(reward)}; {name} can use scores per "
                f"{' or '.join(trainer.granularities)}"
            )
    if args.reward_weights is not None and len(args.reward_weights) != len(rewards):
        raise ConfigError(
            f"reward_weights has {len(args.reward_weights)} values for {len(rewards)} rewards "
            f"({', '.join(unique_names(rewards))}); give one each"
        )
    for role, data in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
        parts = data.values() if isinstance(data, dict) else [data]
        for part in parts:
            if part is not None:
                _check_data(role, part, rewards, args)
    if train_dataset is None:
        raise DataError(f"{name} needs a train_dataset with a column 'prompt'")
    prompts = args.generation_batch_size // args.num_generations
    if isinstance(train_dataset, Dataset) and len(train_dataset) < prompts:
        raise DataError(
            f"train_dataset has {len(train_dataset)} rows, but a rollout takes {prompts} different prompts; bring more "
            "rows, or lower per_device_train_batch_size or gradient_accumulation_steps"
        )
    return rewards


def _as_reward(reward: Any, tokenizer: Any) -> Callable[..., Any]:
    if isinstance(reward, str):
        return load_reward(reward)
    if isinstance(reward, nn.Module):
        return ModuleReward(reward, tokenizer)
    if not callable(reward):
        raise ConfigError(
            f"a reward is a callable, a name for load_reward or a sequence classifier; got {type(reward).__name__}"
        )
    return reward


def _check_data(role: str, data: Any, rewards: list[Any], args: OnPolicyConfig) -> None:
    columns = getattr(data, "column_names", None)
    if columns is None:  # a stream whose columns nobody knows yet
        return
    if hasattr(data, "__len__") and len(data) == 0:
        raise DataError(f"{role} is empty; expected rows with a column 'prompt'")
    if "prompt" not in columns:
        raise DataError(f"{role} has no column 'prompt'; it has: {', '.join(columns)}. Rename or map one to 'prompt'")
    check_columns(rewards, columns)
    if role == "train_dataset" and args.rl_weight < 1 and args.reference_column not in columns:
        raise DataError(
            f"rl_weight={args.rl_weight} adds the likelihood of a reference, but {role} has no column "
            f"{args.reference_column!r}; it has: {', '.join(columns)}. Set reference_column"
        )


@dataclass
class Policy:
    """What a trainer hands to TRL's constructor, and keeps."""

    model: Any
    processing_class: PreTrainedTokenizerBase
    reference: PreTrainedModel | None
    separate_critic: bool

    def restore_head_precision(self) -> None:
        """TRL casts the trainable weights of a quantised model to bf16; a critic regresses, so its head stays fp32."""
        for name, parameter in self.model.named_parameters():
            if f"{HEAD_NAME}." in name and parameter.is_floating_point():
                parameter.data = parameter.data.float()


def prepare_policy(
    trainer: "OnPolicyTrainer",
    model: str | PreTrainedModel,
    args: OnPolicyConfig,
    processing_class: PreTrainedTokenizerBase | None,
    quantization_config: Any,
    peft_config: Any,
    ref_model: PreTrainedModel | None,
) -> Policy:
    """Load the model if it is named, copy its reference, and add scoring and value head."""
    source = model if isinstance(model, str) else None
    loading = {"quantization_config": quantization_config, "model_init_kwargs": args.model_init_kwargs}
    given = [name for name, value in loading.items() if value]
    if source is None and given:
        raise ConfigError(
            f"{' and '.join(given)}: says how to load a model, but the model was given ready; load it so yourself, or "
            "pass its name"
        )
    trusted: dict[str, Any] = {}
    if isinstance(model, str):
        settings = dict(args.model_init_kwargs or {})
        settings.setdefault("dtype", torch.float32)
        settings.setdefault("trust_remote_code", args.trust_remote_code)
        if quantization_config is not None:
            settings["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            settings["device_map"] = None
        trusted = {key: settings[key] for key in ("revision", "trust_remote_code") if key in settings}
        model = load_causal_or_seq2seq(model, **settings)
        if isinstance(model, PeftModel):
            model.set_requires_grad(model.active_adapters)  # it is loaded to be read; here it goes on learning
    processing_class = processing_class or load_tokenizer(source or model.name_or_path, **trusted)
    if processing_class.padding_side != "left":
        raise ConfigError(
            f"the tokenizer pads on the {processing_class.padding_side}; generation needs padding_side='left'"
        )
    if processing_class.pad_token is None:
        processing_class.pad_token = processing_class.eos_token
    _keep_trainable(model)
    has_adapter = isinstance(model, PeftModel)
    base = model.get_base_model() if has_adapter else model
    if ref_model is not None:
        reference = frozen_copy(ref_model)
    elif peft_config is not None:
        reference = None  # the base model, adapter switched off
    elif has_adapter:
        reference = copy.deepcopy(model).merge_and_unload()  # the adapter as it was when training began
        reference = frozen_copy(reference)
    else:
        reference = frozen_copy(base)
    separate = bool(getattr(args, "separate_critic", False)) and trainer.uses_values
    if trainer.uses_values:
        attach_value_head(base, separate_critic=separate, source=source)
        if has_adapter:
            base.value_head.requires_grad_(True)
    add_scoring(base)
    return Policy(model, processing_class, reference, separate)


def _keep_trainable(model: PreTrainedModel) -> None:
    """Forbid bitsandbytes to repack 4-bit weights for inference on a CPU.

    It does so for good in the first forward outside training (sampling is one), and what it packs has no backward: the
    adapters would stay where they are without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def with_saved_heads(model: Any, peft_config: Any) -> Any:
    """A copy of `peft_config` that trains and saves the value head with the adapter."""
    if peft_config is None or not hasattr(model, HEAD_NAME):
        return peft_config
    peft_config = copy.deepcopy(peft_config)
    peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or []), HEAD_NAME})
    return peft_config
