"""Running the checks: all of them with one call, or one at a time."""

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignkit.errors import RewardError
from alignkit.registry import load_reward
from alignkit.reward import in_evaluation
from alignkit.testing.checks import Check, reward_checks
from alignkit.testing.subject import NotApplicable, Subject


class ContractError(RewardError, AssertionError):
    """A reward breaks the contract; the message has every check that it failed."""


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: the check's.
        claim: what it holds true, in a sentence.
        status: "passed", "failed" or "skipped".
        message: why it failed or was skipped.
        seconds: how long it took.
    """

    name: str
    claim: str
    status: str
    message: str = ""
    seconds: float = 0.0


def run_check(check: Check, subject: Subject) -> None:
    """One check, with the reward in evaluation mode, as it was before afterwards.

    Raises:
        AssertionError: the reward fails it; a reward that raises fails it too.
        NotApplicable: the check does not concern this reward.
    """
    # A reward that changes its input would spoil the samples of the checks that follow.
    samples = copy.deepcopy((subject.prompts, subject.completions, subject.columns))
    try:
        with in_evaluation([subject.reward]):
            check(Subject(subject.reward, *samples, subject.made_up))
    except (AssertionError, NotApplicable):
        raise
    except Exception as error:
        hint = ""
        if subject.made_up:
            names = ", ".join(f"'{name}'" for name in subject.made_up)
            hint = f"\n(no values were given for column {names}: it holds sample texts; pass columns= if that is wrong)"
        raise AssertionError(f"{type(error).__name__}: {error}{hint}") from error


def check_reward(
    reward: Any,
    *,
    columns: Mapping[str, list] | None = None,
    prompts: list[str] | None = None,
    completions: list[str] | None = None,
    skip: Iterable[str] | Mapping[str, str] = (),
    raises: bool = True,
) -> list[CheckResult]:
    """Holds a reward against the contract.

    Args:
        reward: a reward, or a name for `load_reward`.
        columns: values for the columns that it requires; they are repeated to the number of samples. A required column
            that is missing here is filled with texts.
        prompts, completions: samples to try it on, in place of the kit's own.
        skip: names of checks to leave out, best with the reason: `{"check_is_deterministic": "asks a live judge"}`.
            A reward may carry such a mapping itself, in an attribute `skip_checks`.
        raises: False returns failures in place of raising them.

    Returns:
        A result for each check, in order.

    Raises:
        ContractError: checks failed; the message has all of them.
        RewardError: the name cannot be loaded, or `skip` names no check.
    """
    if isinstance(reward, str):
        reward = load_reward(reward)
    reasons = dict(getattr(reward, "skip_checks", None) or {})
    reasons.update(skip if isinstance(skip, Mapping) else dict.fromkeys(skip, "left out as asked"))
    checks = reward_checks()
    unknown = sorted(set(reasons) - {check.__name__ for check in checks})
    if unknown:
        raise RewardError(
            f"no check is called {', '.join(unknown)}; the checks are: {', '.join(check.__name__ for check in checks)}"
        )
    subject = Subject.of(reward, dict(columns or {}), prompts, completions)
    results = [_result(check, subject, reasons.get(check.__name__)) for check in checks]
    failed = [result for result in results if result.status == "failed"]
    if failed and raises:
        lines = "\n".join(f"- {result.name}: {result.message}" for result in failed)
        raise ContractError(f"reward '{subject.name}' fails {len(failed)} of {len(checks)} checks\n{lines}")
    return results


def _result(check: Check, subject: Subject, reason: str | None) -> CheckResult:
    name, claim = check.__name__, (check.__doc__ or "").strip().splitlines()[0]
    if reason is not None:
        return CheckResult(name, claim, "skipped", reason)
    start = time.perf_counter()
    status, message = "passed", ""
    try:
        run_check(check, subject)
    except NotApplicable as error:
        status, message = "skipped", str(error)
    except AssertionError as error:
        status, message = "failed", str(error)
    return CheckResult(name, claim, status, message, time.perf_counter() - start)
