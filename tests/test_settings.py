"""Settings that cannot work are refused when they are made, all of them at once, with what to set instead."""

import math
from types import SimpleNamespace

import pytest

from alignkit import OnPolicyConfig, PPOConfig, ReinforceConfig
from alignkit.errors import ConfigError

CONFIGS = (OnPolicyConfig, PPOConfig, ReinforceConfig)
SHARED = [
    ("num_generations", 0, "expected a whole number of 1 or more"),
    ("temperature", 0.0, "expected a number above 0: training samples"),
    ("kl_coef", -0.1, "expected a number of 0 or more: 0 leaves the penalty out"),
    ("kl_target", 0, "expected a number above 0 or None: None keeps kl_coef fixed"),
    ("kl_horizon", 0, "expected a number above 0"),
    ("kl_horizon", None, "expected a number above 0"),
    ("gamma", 1.01, "expected a number between 0 and 1"),
    ("gamma", -0.1, "expected a number between 0 and 1"),
    ("target_kl_stop", -1.0, "or None"),
    ("value_learning_rate", 0.0, "expected a number above 0 or None: None takes the policy's"),
    ("entropy_coef", -0.01, "expected a number of 0 or more"),
    ("rl_weight", 1.5, "expected a number between 0 and 1"),
    ("eval_temperature", -0.5, "expected a number of 0 or more or None: None takes temperature"),
    ("eval_samples", 0, "expected a whole number of 1 or more or None"),
    ("max_completion_length", 0, "expected a whole number of 1 or more"),
    ("kl_coef", math.nan, "expected a number of 0 or more"),
    ("kl_coef", "0.1", "expected a number of 0 or more"),
]
OF_PPO = [
    ("cliprange", 0.0, "expected a number above 0"),
    ("cliprange_value", -1.0, "None does not clip"),
    ("vf_coef", -0.1, "expected a number of 0 or more"),
    ("lam", 1.1, "expected a number between 0 and 1"),
    ("value_warmup_steps", -1, "expected a whole number of 0 or more"),
    ("ptx_coef", -0.5, "expected a number of 0 or more: 0 leaves the ptx text out"),
    ("ptx_max_length", 1, "expected a whole number of 2 or more"),
    ("num_iterations", 0, "expected a whole number of 1 or more"),
]
OF_REINFORCE = [("baseline_coef", -1.0, "expected a number of 0 or more")]


def made(config, **settings):
    return config(output_dir="run", report_to="none", use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("config", "name", "value", "expected"),
    [(config, *case) for config in CONFIGS for case in SHARED]
    + [(PPOConfig, *case) for case in OF_PPO]
    + [(ReinforceConfig, *case) for case in OF_REINFORCE],
)
def test_a_number_out_of_range_is_named_with_what_is_expected(config, name, value, expected):
    with pytest.raises(ConfigError) as refused:
        made(config, **{name: value})
    assert f"{name}={value!r}; " in str(refused.value) and expected in str(refused.value)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_ends_of_the_ranges_are_allowed(config):
    made(config, kl_coef=0, gamma=0, entropy_coef=0, rl_weight=1, eval_samples=1, value_learning_rate=None)
    made(config, gamma=1, kl_target=None, max_completion_length=1)


def test_all_problems_come_at_once():
    wrong = dict(kl_coef=-1.0, gamma=2.0, vf_coef=-1.0, rl_weight=0.5, beta=0.1, kl_estimator="k4", num_generations=3)
    with pytest.raises(ConfigError) as refused:
        made(PPOConfig, auto_find_batch_size=True, **wrong)
    assert all(name in str(refused.value) for name in [*wrong, "auto_find_batch_size"])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auto_find_batch_size": True}, "lower per_device_train_batch_size"),
        ({"log_completions_hub_repo": "me/completions"}, "set log_completions=True"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of=8 .* has no effect here"),
        ({"num_generations_eval": 4}, "num_generations_eval=4 .* has no effect here"),
    ],
)
def test_what_grpo_refuses_is_refused_and_what_it_alone_reads_too(config, settings, message):
    with pytest.raises(ConfigError, match=message):
        made(config, **settings)


@pytest.mark.parametrize("split", ["cp_enabled", "sp_enabled"])
def test_split_sequences_are_refused(split, monkeypatch):
    config = made(PPOConfig)
    config.parallelism_config = SimpleNamespace(**{"cp_enabled": False, "sp_enabled": False, split: True})
    assert "cp_size=1 and sp_size=1" in config._refused_by_grpo()[0]


@pytest.mark.parametrize("given", ["auto", "none", None])
def test_no_padding_may_be_said_in_any_way(given):
    assert made(PPOConfig, pad_to_multiple_of=given).pad_to_multiple_of is None


def test_reinforce_learns_only_from_the_policy_that_sampled():
    """A second optimiser step on one rollout would need a ratio that REINFORCE does not have."""
    with pytest.raises(ConfigError, match="leave it out, raise gradient_accumulation_steps, or use PPOTrainer"):
        made(ReinforceConfig, steps_per_generation=2)
    with pytest.raises(ConfigError, match="spreads a rollout over several optimiser steps"):
        made(ReinforceConfig, generation_batch_size=32)
    assert made(ReinforceConfig, steps_per_generation=2, gradient_accumulation_steps=2).generation_batch_size == 16
    assert made(PPOConfig, steps_per_generation=2).generation_batch_size == 16


def test_a_warm_up_of_the_critic_is_refused_where_gradients_cannot_be_held_back():
    config = made(PPOConfig, value_warmup_steps=2)
    assert config._contradictions() == []
    config.deepspeed_plugin = SimpleNamespace()
    assert "value_warmup_steps=2 holds gradients back" in config._contradictions()[0]


@pytest.mark.parametrize("name, value", [("temperature", 0.3), ("do_sample", False), ("num_beams", 4)])
def test_sampling_that_scoring_would_not_know_of_is_refused(name, value):
    with pytest.raises(ConfigError, match="set `temperature` itself and leave this out"):
        made(PPOConfig, generation_kwargs={name: value})
    assert made(PPOConfig, generation_kwargs={"min_new_tokens": 3}).generation_kwargs == {"min_new_tokens": 3}
