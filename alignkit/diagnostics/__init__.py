"""Monitors of a run: pure functions over its log, in words a person understands.

`Watch` looks at a run as it goes, or at a finished one, row by row; `alignkit.trainers.health.HealthCallback` acts on
what it finds. Nothing here needs torch.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from alignkit.diagnostics.correctness import (
    finite_values,
    is_vital,
    kl_at_start,
    reward_varies,
    sampling_matches_scoring,
    weights_move,
)
from alignkit.diagnostics.drift import (
    critic_explains,
    diversity_holds,
    entropy_in_bounds,
    held_out_direction,
    held_out_follows_reward,
    kl_in_bounds,
    length_holds,
    updates_are_small,
    weights_are_spread,
)
from alignkit.diagnostics.history import STATUSES, Finding, History, Limits

__all__ = [
    "CHECKS",
    "STATUSES",
    "Check",
    "Finding",
    "History",
    "Limits",
    "Watch",
    "held_out_direction",
    "is_vital",
    "review",
]


@dataclass(frozen=True)
class Check:
    """One monitor.

    Attributes:
        title: the claim it holds, in a few words.
        monitor: `(history, limits) -> Finding`, with status `ok` or `warn`; None where there is nothing to judge yet.
        needs: what the log must hold for it, in words.
        action: what the callback does by default when it fails: `warn`, `stop` or `rollback`.
    """

    title: str
    monitor: Callable[[History, Limits], Finding | None]
    needs: str
    action: str = "warn"


CHECKS = {
    "finite": Check("Every figure is finite", finite_values, "any figure", action="rollback"),
    "kl_at_start": Check("Policy starts as its reference", kl_at_start, "the KL of the first step"),
    "sampling": Check("Scoring agrees with sampling", sampling_matches_scoring, "the log-probabilities of sampling"),
    "reward_variance": Check("Rewards differ", reward_varies, "reward_std over a few log lines"),
    "weights": Check("Weights move", weights_move, "a few log lines with a learning rate"),
    "kl": Check("Policy stays near its reference", kl_in_bounds, "the KL over a few log lines"),
    "entropy": Check("Policy keeps exploring", entropy_in_bounds, "the entropy over six log lines"),
    "diversity": Check("Completions stay varied", diversity_holds, "distinct-2 at two evaluations"),
    "length": Check("Length stays in bounds", length_holds, "lengths over six log lines"),
    "held_out": Check("Held-out measures follow the reward", held_out_follows_reward, "a judge at three evaluations"),
    "critic": Check("Value head predicts returns", critic_explains, "explained variance over 20 log lines"),
    "update_size": Check("Updates are small", updates_are_small, "several passes over a rollout"),
    "weights_spread": Check("Weights are spread", weights_are_spread, "the effective sample size over five log lines"),
}


class Watch:
    """Runs all monitors on each row of a log and remembers what each check last said, and whether it ever failed.

    Args:
        limits: thresholds.
        off: names of checks to leave out.
    """

    def __init__(self, limits: Limits | None = None, off: Iterable[str] = ()):
        self.limits = limits or Limits()
        self.history = History()
        self.off = set(off)
        self.current: dict[str, Finding] = {}
        self.failed: dict[str, Finding] = {}

    def observe(self, row: Mapping[str, Any]) -> list[Finding]:
        """Take one log row.

        Returns:
            the findings that are new: checks that were fine, or silent, and now fail.
        """
        self.history.add(row)
        new = []
        for name, check in CHECKS.items():
            finding = None if name in self.off else check.monitor(self.history, self.limits)
            if finding is None:
                continue
            before = self.current.get(name)
            if finding.status != "ok":
                if before is None or before.status == "ok":
                    new.append(finding)
                else:  # still failing: the newest figures, since the step at which it began
                    finding = replace(finding, step=before.step, status=before.status)
                self.failed[name] = finding
            self.current[name] = finding
        return new

    def act(self, finding: Finding, status: str) -> Finding:
        """Note what was done about a finding, and return it so. After a rollback the check begins anew."""
        done = finding.with_status(status)
        self.report(done)
        if status == "rollback":
            del self.current[finding.check]
        return done

    def rewind(self, step: int) -> None:
        """Forget the figures after a step, so that an abandoned stretch is not held against what follows."""
        self.history.forget_after(step)

    def report(self, finding: Finding) -> None:
        """Note a finding that no monitor made, such as a gradient that was not finite."""
        self.current[finding.check] = self.failed[finding.check] = finding

    def summary(self) -> list[Finding]:
        """One finding a check, in the order of `CHECKS`; a check that failed and recovered says both."""
        found = []
        for name in CHECKS:
            failed = self.failed.get(name)
            now = self.current.get(name, failed)
            if now is None:
                continue
            if failed is not None and now.status == "ok":
                now = replace(failed, message=f"{failed.message} It has been fine again since: {_lower(now.message)}")
            found.append(now)
        return found


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def review(rows: Iterable[Mapping[str, Any]], limits: Limits | None = None) -> list[Finding]:
    """The findings of a finished run, from the rows of its metrics.jsonl."""
    watch = Watch(limits)
    for row in rows:
        watch.observe(row)
    return watch.summary()
