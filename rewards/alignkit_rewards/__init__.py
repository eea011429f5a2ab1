"""Rewards for alignkit, registered by the entry points that every plugin uses; `alignkit.load_reward` loads them."""

from importlib import import_module
from typing import Any

_HOME = {
    "Discriminator": "discriminator",
    "Distinct": "distinct",
    "LanguageStyle": "language_style",
    "Length": "length",
    "Lexicon": "lexicon",
    "LookAhead": "look_ahead",
    "ReferenceOverlap": "reference_overlap",
    "Repetition": "repetition",
    "Sentiment": "sentiment",
    "Similarity": "similarity",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"alignkit_rewards.{_HOME[name]}"), name)
    raise AttributeError(f"module 'alignkit_rewards' has no attribute {name!r}; it offers: {', '.join(__all__)}")
