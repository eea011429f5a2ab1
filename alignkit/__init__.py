"""alignkit: rewards that you wrote or trained yourself, in training, decoding, evaluation and explanation.

Public names load on first use, so that `alignkit rewards list` does not wait for torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AlignkitError": "errors",
    "BestOfN": "decoding.best_of_n",
    "CooperativeConfig": "trainers.cooperative_config",
    "CooperativeTrainer": "trainers.cooperative",
    "DAS": "decoding.das",
    "LearnedReward": "reward",
    "MCTS": "decoding.mcts",
    "MixtureDecoder": "decoding.mixture",
    "OnPolicyConfig": "trainers.on_policy_config",
    "OnPolicyTrainer": "trainers.on_policy",
    "PPOConfig": "trainers.ppo_config",
    "PPOTrainer": "trainers.ppo",
    "ReinforceConfig": "trainers.reinforce",
    "ReinforceTrainer": "trainers.reinforce",
    "Resample": "decoding.resample",
    "Reward": "reward",
    "SamplingDecoder": "decoding.sampling",
    "as_trl_reward_model": "models.reward_module",
    "StopOnSignal": "trainers.interruption",
    "load_data": "data",
    "load_metric": "metrics",
    "load_recipe": "recipe",
    "load_reward": "registry",
    "merge_adapter": "models.merging",
    "run_recipe": "run",
    "write_report": "report",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"alignkit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}; it offers: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
