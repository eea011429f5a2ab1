"""What alignkit builds on inside TRL and transformers still exists, with the arguments that it uses.

TRL keeps few promises about its trainers' methods, so `trl` is bound to one minor version. To move to the next one, run
this file first: every name it complains about is a place to look at.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from pathlib import Path

import pytest
import transformers
import trl
from datasets import Dataset
from transformers import GenerationMixin, PreTrainedModel, Trainer
from trl import GRPOConfig, GRPOTrainer, RLOOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.models import prepare_deepspeed, prepare_fsdp, unwrap_model_for_generation
from trl.trainer import utils
from trl.trainer.base_trainer import _BaseTrainer

from alignkit import (
    CooperativeConfig,
    CooperativeTrainer,
    OnPolicyTrainer,
    PPOConfig,
    PPOTrainer,
    ReinforceConfig,
    ReinforceTrainer,
)
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.trainers import labelled_positions, on_policy_config

TRAINERS = Path(on_policy_config.__file__).parent
OURS = (PPOTrainer, ReinforceTrainer, CooperativeTrainer)

# Methods of TRL's or transformers' trainers that ours replace, and the method of theirs that calls them.
HOOKS = {
    "_prepare_inputs": (Trainer, "training_step"),
    "_compute_loss": (GRPOTrainer, "compute_loss"),
    "_get_train_sampler": (GRPOTrainer, "get_train_dataloader"),
    "_send_telemetry": (_BaseTrainer, "__init__"),
    "_save": (Trainer, "save_model"),
    "_save_checkpoint": (Trainer, "_maybe_log_save_evaluate"),
    "_get_output_dir": (Trainer, "_save_checkpoint"),
    "_push_from_checkpoint": (Trainer, "_save_checkpoint"),
    "_finalize_training": (Trainer, "_inner_training_loop"),
    "_load_from_checkpoint": (Trainer, "train"),
    "_load_best_model": (Trainer, "_finalize_training"),
    "_issue_warnings_after_load": (Trainer, "_load_from_checkpoint"),
    "_load_optimizer_and_scheduler": (Trainer, "_prepare_for_training"),
}

# GRPOTrainer's methods that never run in ours: what only they read must be refused by `OnPolicyConfig`.
BYPASSED = {
    "_compute_loss",
    "_generate_and_score_completions",
    "_get_per_token_logps_and_entropies",
    "_calculate_rewards",
    "_prepare_inputs",
}
# Settings that our code never names, because a method of TRL's that still runs reads them.
READ_BY_TRL = {
    "disable_dropout",
    "log_completions",
    "log_completions_hub_repo",
    "log_unique_prompts",
    "num_completions_to_print",
    "shuffle_dataset",
    "vllm_enable_sleep_mode",
    "vllm_gpu_memory_utilization",
    "vllm_group_port",
    "vllm_max_model_length",
    "vllm_mode",
    "vllm_model_impl",
    "vllm_server_base_url",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_server_timeout",
    "vllm_structured_outputs_regex",
    "vllm_tensor_parallel_size",
}


def methods_of_ours() -> dict[str, object]:
    """Everything callable that alignkit's classes define along the way from PPOTrainer to GRPOTrainer."""
    found: dict[str, object] = {}
    for trainer in OURS:
        for owner in trainer.__mro__:
            if owner.__module__.startswith("alignkit"):
                found.update({name: thing for name, thing in vars(owner).items() if inspect.isfunction(thing)})
    return found


def attributes_of(cls: type) -> set[str]:
    """Names that instances have: the class's own, and what any method of its ancestors assigns to self."""
    names = set(dir(cls))
    for owner in cls.__mro__[:-1]:
        if owner.__module__.split(".")[0] in {"trl", "transformers"}:
            names |= assigned_to_self(ast.parse(textwrap.dedent(inspect.getsource(owner))))
    return names


def assigned_to_self(tree: ast.AST) -> set[str]:
    return {n.attr for n in ast.walk(tree) if is_self(n) and isinstance(n.ctx, ast.Store)}


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in {"self", "trainer"}


def our_trainer_sources() -> list[tuple[str, ast.ClassDef]]:
    """The classes in alignkit/trainers that become part of a trainer."""
    mixed_in = {owner.__name__ for trainer in OURS for owner in trainer.__mro__}
    trees = [(path.name, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(TRAINERS.glob("*.py"))]
    return [(name, n) for name, tree in trees for n in tree.body if isinstance(n, ast.ClassDef) and n.name in mixed_in]


def test_the_version_is_the_one_that_we_build_on():
    assert trl.__version__.startswith("1.16.")


@pytest.mark.parametrize("name", HOOKS)
def test_a_method_that_we_replace_is_still_there_and_still_called(name):
    owner, caller = HOOKS[name]
    assert hasattr(GRPOTrainer, name), f"{name} is gone: our version of it would never run"
    source = inspect.getsource(getattr(owner, caller))
    assert re.search(rf"self\.{name}\b", source), f"{owner.__name__}.{caller} calls no {name}"


def test_the_function_that_decides_which_positions_are_scored_is_still_asked():
    """`LabelledPositionsSFTTrainer` replaces it: without it, or unasked, a CPU would silently score all positions."""
    assert labelled_positions._DECIDES in inspect.getsource(utils.add_fused_lm_head)
    assert hasattr(utils, labelled_positions._DECIDES)


def test_every_private_method_that_we_replace_is_listed_here():
    replaced = {name for name in methods_of_ours() if name.startswith("_") and hasattr(GRPOTrainer, name)}
    assert {name for name in replaced if not name.startswith("__")} == set(HOOKS)


@pytest.mark.parametrize(
    "name", sorted(name for name in methods_of_ours() if hasattr(GRPOTrainer, name) and not name.startswith("__"))
)
def test_our_version_of_a_method_takes_the_arguments_that_theirs_takes(name):
    ours = inspect.signature(methods_of_ours()[name]).parameters
    theirs = inspect.signature(getattr(GRPOTrainer, name)).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in ours.values()):
        return
    assert list(theirs) == list(ours)[: len(theirs)]


def test_what_our_trainers_use_of_theirs_exists():
    """Every `self.x` of our trainer classes is ours, or is found in TRL's or transformers' trainer."""
    sources = our_trainer_sources()
    assert {node.name for _, node in sources} >= {"OnPolicyTrainer", "PPOTrainer", "ReinforceTrainer"}
    theirs = attributes_of(GRPOTrainer)
    own = set(methods_of_ours()) | {n for t in OURS for n in dir(t) if n not in dir(GRPOTrainer)}
    for _, node in sources:
        own |= assigned_to_self(node)
    used = {(file, n.attr) for file, node in sources for n in ast.walk(node) if is_self(n)}
    assert sorted((file, name) for file, name in used if name not in own | theirs) == []


def test_the_settings_that_our_trainers_read_exist():
    configs = (PPOConfig, ReinforceConfig, CooperativeConfig)
    known = {name for config in configs for name in dir(config)}
    for config in configs:
        known |= {field.name for field in dataclasses.fields(config)}
    read = set()
    for path in TRAINERS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self.args", "trainer.args"}:
                read.add(node.attr)
    assert read and read <= known, sorted(read - known)


def test_the_settings_that_we_refuse_are_settings_of_grpo():
    fields = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert set(on_policy_config._GRPO_ONLY) <= fields


def test_every_setting_of_grpo_is_used_or_refused():
    """A setting that nothing reads would silently do nothing. New ones of a new TRL show up here."""
    inherited = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    fields = {field.name for field in dataclasses.fields(GRPOConfig)} - inherited
    read = set()
    for path in TRAINERS.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert sorted(fields - set(on_policy_config._GRPO_ONLY) - read - READ_BY_TRL) == []


def test_what_trl_is_said_to_read_it_reads_where_it_still_runs():
    runs = "".join(
        inspect.getsource(thing)
        for name, thing in vars(GRPOTrainer).items()
        if inspect.isfunction(thing) and name not in BYPASSED
    )
    assert sorted(name for name in READ_BY_TRL if name not in runs) == []


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (
            GRPOTrainer.__init__,
            "model reward_funcs args train_dataset eval_dataset processing_class callbacks peft_config",
        ),
        (GRPOTrainer._generate_single_turn, "prompt_ids images multimodal_fields"),
        (
            unwrap_model_for_generation,
            "model accelerator gather_deepspeed3_params generation_kwargs gradient_checkpointing_kwargs",
        ),
        (prepare_deepspeed, "model accelerator"),
        (prepare_fsdp, "model accelerator"),
        (GenerationMixin.generate, "generation_config custom_generate synced_gpus"),
        (GenerationMixin.prepare_inputs_for_generation, "input_ids next_sequence_length is_first_iteration"),
        (GenerationMixin._update_model_kwargs_for_generation, "outputs model_kwargs is_encoder_decoder"),
        (GenerationMixin._has_unfinished_sequences, "this_peer_finished synced_gpus device"),
        (PreTrainedModel.from_pretrained, "pretrained_model_name_or_path"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_functions_take_the_arguments_that_we_pass(function, arguments):
    missing = set(arguments.split()) - set(inspect.signature(function).parameters)
    assert not missing, f"{function.__qualname__} lost {missing} (transformers {transformers.__version__})"


@pytest.mark.parametrize("trainer", [GRPOTrainer, RLOOTrainer])
def test_rewards_are_still_called_with_what_the_contract_promises(trainer):
    """TRL calls a reward with these keywords; a reward written for us must meet them there too."""
    source = inspect.getsource(trainer._calculate_rewards)
    for keyword in ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"):
        assert keyword in source, f"{trainer.__name__} no longer passes {keyword}"


def test_a_prompt_is_still_repeated_in_consecutive_rows():
    """`leave_one_out` takes consecutive rows for a group."""
    from trl.trainer.utils import RepeatSampler

    drawn = list(RepeatSampler(range(6), mini_repeat_count=3, batch_size=2, shuffle=False))
    assert drawn[:6] == [0, 0, 0, 1, 1, 1]


def test_our_trainers_report_nothing_home(monkeypatch, tmp_path):
    """TRL's own trainers do, outside of CI and offline runs."""
    sent = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **report: sent.append(report))
    data = Dataset.from_dict({"prompt": ["the film was"] * 8})

    def length(completions, **columns):
        return [float(len(text)) for text in completions]

    settings = dict(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    PPOTrainer(tiny_causal_lm(), length, PPOConfig(**settings), data, processing_class=tiny_tokenizer())
    assert sent == []
    GRPOTrainer(tiny_causal_lm(), length, GRPOConfig(**settings, bf16=False), data, processing_class=tiny_tokenizer())
    assert len(sent) == 1


def test_vllm_still_takes_its_weights_from_the_walk_that_leaves_the_critic_out():
    """`keep_critic_at_home` replaces the walk on the engine itself, so every way of sending weights must go by it."""
    source = inspect.getsource(VLLMGeneration.sync_weights)
    assert source.count("self._iter_named_params()") >= 3 and "named_parameters" not in source
    assert "self.vllm_generation = VLLMGeneration(" in inspect.getsource(GRPOTrainer.__init__)


def test_our_base_is_a_grpo_trainer():
    assert issubclass(OnPolicyTrainer, GRPOTrainer)
