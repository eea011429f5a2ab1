"""The kit for reward authors: `check_reward` holds a reward against the contract, tiny models serve as networks.

    from alignkit.testing import check_reward

    check_reward(Politeness(), columns={"persona": ["a sailor", "a judge"]})

In a test suite the pytest plugin, which comes with alignkit, makes a test of each check; see `alignkit.pytest_plugin`.
"""

from typing import Any

from alignkit.testing.checks import reward_checks
from alignkit.testing.running import CheckResult, ContractError, check_reward, run_check
from alignkit.testing.subject import NotApplicable, Subject

_TINY = ("CAUSAL_KINDS", "tiny_causal_lm", "tiny_classifier", "tiny_seq2seq", "tiny_tokenizer")

__all__ = [
    "CheckResult",
    "ContractError",
    "NotApplicable",
    "Subject",
    "check_reward",
    "reward_checks",
    "run_check",
    *_TINY,
]
__all__.sort()


def __getattr__(name: str) -> Any:
    # Tiny models need torch; most checks of most rewards do not.
    if name in _TINY:
        from alignkit.models import tiny

        return getattr(tiny, name)
    raise AttributeError(f"module 'alignkit.testing' has no attribute {name!r}; it offers: {', '.join(__all__)}")
