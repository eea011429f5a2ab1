"""What an on-policy trainer checks and builds before TRL's constructor runs: cheap checks first, the model last."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.errors import ConfigError, DataError
from alignkit.models.adapters import (
    TrainablePrecision,
    check_adapter,
    keep_trainable,
    let_learn,
    require_bitsandbytes,
    saved_shapes,
)
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.models.locating import resolve_model
from alignkit.models.module_reward import ModuleReward
from alignkit.models.reference import frozen_copy
from alignkit.models.scoring import add_scoring
from alignkit.models.value_head import CRITIC_NAME, HEAD_NAME, attach_value_head
from alignkit.registry import load_reward
from alignkit.reward import check_columns, check_references, granularity, unique_names
from alignkit.trainers.on_policy_config import OnPolicyConfig
from alignkit.whole_files import check_writable

logger = logging.getLogger("alignkit.models")

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
    if args.should_save:
        check_writable(args.output_dir)
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
    if "prompt" not in columns and "input_ids" in columns:
        raise DataError(
            f"{role} has input_ids and no column 'prompt': its prompts are tokenised already. Here they stay text or "
            "messages and are tokenised as they are sampled: leave the tokenising out and call the text 'prompt', or "
            "turn the ids back into it: dataset.map(lambda row: {'prompt': tokenizer.decode(row['input_ids'], "
            "skip_special_tokens=True)}, remove_columns=dataset.column_names)"
        )
    if "prompt" not in columns:
        raise DataError(f"{role} has no column 'prompt'; it has: {', '.join(columns)}. Rename or map one to 'prompt'")
    check_columns(rewards, columns)
    if role == "train_dataset":
        check_references(rewards, columns, args.reference_column)
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
    precision: TrainablePrecision

    def restore_precision(self) -> None:
        """Undo TRL's rounding of what trains beside quantised weights."""
        self.precision.restore(self.model)


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
    separate = bool(getattr(args, "separate_critic", False)) and trainer.uses_values
    settings: dict[str, Any] = {}
    if "8bit" in str(args.optim).lower():
        require_bitsandbytes(f"optim={getattr(args.optim, 'value', args.optim)}")
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
        settings.update(args.model_init_kwargs or {})
        settings.setdefault("trust_remote_code", args.trust_remote_code)
        if quantization_config is not None:
            settings["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            settings["device_map"] = None
        trusted = {key: settings[key] for key in ("revision", "trust_remote_code") if key in settings}
        saved = saved_shapes(resolve_model(model)) if trainer.uses_values else {}
        if f"{HEAD_NAME}.linear.weight" in saved:
            # the adapter saved the critic too: it must be there before the adapter is loaded
            _check_critic(model, saved, separate)
            settings["before_adapter"] = partial(attach_value_head, separate_critic=separate)
        model = load_causal_or_seq2seq(model, **settings)
    let_learn(model)
    processing_class = processing_class or load_tokenizer(source or model.name_or_path, **trusted)
    if processing_class.padding_side != "left":
        raise ConfigError(
            f"the tokenizer pads on the {processing_class.padding_side}; generation needs padding_side='left'"
        )
    if processing_class.pad_token is None:
        processing_class.pad_token = processing_class.eos_token
    check_adapter(model, peft_config)
    keep_trainable(model)
    has_adapter = isinstance(model, PeftModel)
    base = model.get_base_model() if has_adapter else model
    if ref_model is not None:
        reference = frozen_copy(ref_model)
    elif peft_config is not None:
        reference = None  # the base model, adapter switched off
    elif has_adapter:
        # the adapter as it was when training began
        sharded = args.distributed_state.distributed_type in ("FSDP", "DEEPSPEED")
        reference = frozen_copy(model, share_frozen=not sharded)
    else:
        reference = frozen_copy(base)
    if trainer.uses_values and "before_adapter" not in settings:
        if source is not None and has_adapter:
            _say_fresh_critic(source)
        attach_value_head(base, separate_critic=separate, source=source)
        if has_adapter:
            base.value_head.requires_grad_(True)
    add_scoring(base)
    return Policy(model, processing_class, reference, separate, TrainablePrecision(model))


def _check_critic(source: str, saved: dict[str, tuple[int, ...]], separate: bool) -> None:
    of_its_own = any(name.startswith(f"{CRITIC_NAME}.") for name in saved)
    if of_its_own != separate:
        raise ConfigError(
            f"the critic saved in {source} has {'a trunk of its own' if of_its_own else 'the trunk of its policy'}; "
            f"train on with separate_critic={of_its_own}, or merge the adapter (alignkit merge) and begin a new critic"
        )


def _say_fresh_critic(source: str) -> None:
    logger.warning(
        "%s holds no value head: its adapter goes on learning with a critic that starts from nothing. "
        "value_warmup_steps lets the critic learn before the policy moves",
        source,
    )


def with_saved_heads(model: Any, peft_config: Any) -> Any:
    """A copy of `peft_config` that trains and saves the value head with the adapter."""
    if peft_config is None or not hasattr(model, HEAD_NAME):
        return peft_config
    peft_config = copy.deepcopy(peft_config)
    peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or []), HEAD_NAME})
    return peft_config
