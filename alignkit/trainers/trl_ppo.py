"""What TRL's `PPOConfig` and `PPOTrainer` had and ours have not, and where each of them went.

`docs/migrate-from-trl-ppo.md` says the same in its tables; a test holds the two together.
"""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from transformers import PreTrainedTokenizerBase, TrainingArguments

from alignkit.errors import ConfigError
from alignkit.settings import argument_problems

_PAGE = "docs/migrate-from-trl-ppo.md"


class Moved(NamedTuple):
    """Where a setting or an argument went.

    Attributes:
        here: what does its work here; empty where nothing has to.
        change: what is different.
    """

    here: tuple[str, ...]
    change: str


_BATCHES = "see batches and steps"
_COMPUTED = "gone: the trainer computed them and wrote them there"
_ENDS = "gone: a completion ends at the tokenizer's eos_token; for another end set tokenizer.eos_token"

SETTINGS = {
    "dataset_num_proc": Moved((), "gone: the trainer did not read it; here the data stay text"),
    "num_mini_batches": Moved(("steps_per_generation", "gradient_accumulation_steps"), _BATCHES),
    "num_ppo_epochs": Moved(("num_iterations",), "same default, 4"),
    "total_episodes": Moved(("max_steps", "num_train_epochs"), f"optimiser steps instead of completions, {_BATCHES}"),
    "local_rollout_forward_batch_size": Moved(
        ("per_device_train_batch_size",), "gone: rollouts are scored in micro-batches of training"
    ),
    "num_sample_generations": Moved(
        ("log_completions", "eval_steps"),
        "rollouts are logged as a table, held-out prompts by evaluation; off by default",
    ),
    "response_length": Moved(("max_completion_length",), "its default is 512, that of response_length was 53"),
    "stop_token": Moved((), _ENDS),
    "stop_token_id": Moved((), _ENDS),
    "missing_eos_penalty": Moved(("reward_weights",), "gone: a reward with a negative weight, see before and after"),
    "sft_model_path": Moved((), "gone: no trainer read it; the model is an argument"),
    "reward_model_path": Moved((), "gone: no trainer read it; the rewards are an argument"),
    "model_adapter_name": Moved((), "gone: the trainer's peft_config makes the one adapter that is trained"),
    "ref_adapter_name": Moved(
        (), "gone: the reference is the model with its adapter switched off, or the argument ref_model"
    ),
    "world_size": Moved((), _COMPUTED),
    "batch_size": Moved((), _COMPUTED),
    "micro_batch_size": Moved((), _COMPUTED),
    "mini_batch_size": Moved((), _COMPUTED),
    "local_batch_size": Moved((), _COMPUTED),
    "local_mini_batch_size": Moved((), _COMPUTED),
    "num_total_batches": Moved((), _COMPUTED),
}

ARGUMENTS = {
    "reward_model": Moved(
        ("reward_funcs",),
        "one callable or several; a sequence classifier is still taken, its first logit counts",
    ),
    "value_model": Moved((), "gone: a head on the policy, or a trunk of its own with separate_critic=True"),
    "data_collator": Moved((), "gone: prompts are tokenised and padded as they are sampled"),
}

# Names that TRL had before 1.12 and that are still met in scripts.
OLDER_SETTINGS = {
    "ppo_epochs": Moved(("num_iterations",), "same default, 4"),
    "exp_name": Moved(("run_name", "output_dir"), "run_name is what trackers show, output_dir where the run goes"),
    "steps": Moved(("max_steps",), f"optimiser steps instead of completions, {_BATCHES}"),
    "init_kl_coef": Moved(("kl_coef",), "0.05 instead of 0.2"),
    "adap_kl_ctrl": Moved(("kl_target",), "a number adapts kl_coef, None keeps it fixed"),
    "target": Moved(("kl_target",), "None instead of 6"),
    "horizon": Moved(("kl_horizon",), "same default, 10000"),
    "target_kl": Moved(("target_kl_stop",), "None instead of 1"),
    "log_with": Moved(("report_to",), "the names of trackers"),
}
OLDER_ARGUMENTS = {
    "config": Moved(("args",), "a PPOConfig of ours"),
    "tokenizer": Moved(("processing_class",), "same, by the name that transformers gives it now"),
    "dataset": Moved(("train_dataset",), "a column prompt with text or messages instead of input_ids"),
}
_ORDER_THERE = "args, processing_class, model, ref_model, reward_model, train_dataset, ..."


class KnownArguments:
    """Refuses arguments that a trainer does not have, and those in the order of TRL's PPOTrainer, before Python does.

    Attributes:
        config_class: the settings of the trainer.
        moved: arguments of theirs that went elsewhere than in `PPOTrainer`.
    """

    config_class: type
    moved: Mapping[str, Moved] = MappingProxyType({})

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Raises `ConfigError`, which says where each argument went."""
        if given or named:  # a copy is made without any
            _check_arguments(cls, given, named)
        return super().__new__(cls)


def _check_arguments(trainer: type[KnownArguments], given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    taken: dict[str, inspect.Parameter] = {}
    for base in trainer.__mro__:  # up to the constructor that hands on no other names
        added = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        taken = {**added, **taken}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in added.values()):
            break
    taken = {name: p for name, p in taken.items() if name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    name, order = trainer.__name__, ", ".join(list(taken)[:6])
    owner = next(base for base in trainer.__mro__ if "__init__" in vars(base))
    declared = list(inspect.signature(owner.__init__).parameters.values())[1:]  # type: ignore[misc]
    # a user's own trainer may begin otherwise
    starts_with_model = any(p.name == "model" or p.kind is p.VAR_POSITIONAL for p in declared[:1])
    theirs = isinstance(given[0], TrainingArguments) if given else False
    theirs = theirs or (len(given) > 1 and isinstance(given[1], PreTrainedTokenizerBase))
    if theirs and starts_with_model:
        shown = ", ".join(type(value).__name__ for value in given)
        raise ConfigError(
            f"{name} was given ({shown}) by position; the order here is {order}, ..., and that of TRL's PPOTrainer was "
            f"{_ORDER_THERE}: give each argument by its name ({_PAGE})"
        )
    if not owner.__module__.startswith("alignkit.") and any(p.kind is p.VAR_KEYWORD for p in declared):
        return  # a user's own trainer, which may take out of them what it does not hand on
    config = trainer.config_class
    article = "an" if config.__name__[0] in "AEIO" else "a"
    differs = {"config": Moved(("args",), f"{article} {config.__name__} of ours")}
    if not hasattr(config, "separate_critic"):
        differs["value_model"] = Moved((), "gone: this trainer has no critic")
    moved = advice({**ARGUMENTS, **OLDER_ARGUMENTS, **differs, **trainer.moved})
    problems = argument_problems(name, named, taken, demand=False, moved=moved, noun="argument")
    if problems:
        raise ConfigError("; ".join(problems))


def advice(table: Mapping[str, Moved]) -> dict[str, str]:
    """Name -> how the sentence "... has no setting NAME" goes on.

    >>> advice({"num_ppo_epochs": Moved(("num_iterations",), "same default, 4")})["num_ppo_epochs"]
    '; use num_iterations: same default, 4 (docs/migrate-from-trl-ppo.md)'
    """
    said = {}
    for name, (here, change) in table.items():
        what = f"use {', '.join(here)}: {change.removeprefix('gone: ')}" if here else change
        said[name] = f"; {what} ({_PAGE})"
    return said
