"""What a monitor looks at: the log of a run, key by key, and what it may find."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

STATUSES = ("ok", "warn", "stop", "rollback")


@dataclass(frozen=True)
class Finding:
    """What one check has to say, in words a person understands.

    Attributes:
        check: its name, a key of `alignkit.diagnostics.CHECKS`.
        status: `ok`, `warn`, `stop` (the run was stopped) or `rollback` (it went back to a checkpoint).
        message: what was seen, and what to do about it.
        step: optimiser step at which it was seen.
    """

    check: str
    status: str
    message: str
    step: int

    def with_status(self, status: str) -> "Finding":
        """The same finding, acted upon."""
        return replace(self, status=status)

    def as_dict(self) -> dict[str, Any]:
        """For health.json."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """Where a figure stops being healthy. Every limit is a setting; the defaults are wide on purpose.

    Attributes:
        kl_at_start: nats per token between policy and reference at the first step, where they are the same model.
        log_prob_gap: mean difference (nats) between the log-probability seen while sampling and when scoring.
        kl_per_token: nats per token from the reference beyond which little of it is left.
        reward_std: a spread of rewards below this is no spread.
        weights_delta: relative change of the weights below this is none.
        entropy_ratio: share of the first entropy below which the policy is nearly deterministic.
        entropy_growth: factor over the first entropy above which the policy turns to noise.
        diversity_ratio: share of the first distinct-2 below which completions have become alike.
        length_ratio: factor by which the mean length may grow or shrink.
        held_out_loss: share of its best value that a held-out metric may lose while the reward rises.
        perplexity_growth: factor by which a held-out perplexity may grow: it rises with every departure from the
            reference, wanted or not.
        explained_variance: of the critic; a little below 0 is noise.
        approximate_kl: nats per token that the policy may move within the passes over one rollout.
        clip_ratio: share of tokens that may hit the clip.
        effective_share: share of a prompt's completions that the effective sample size of importance weights may not
            fall below; 0 does not look.
        patience: log lines in a row before a check speaks, where one line could be chance.
        eight_bits: the base computes in 8 bits; a message then names that as a cause.
    """

    kl_at_start: float = 0.01
    log_prob_gap: float = 0.01
    kl_per_token: float = 1.5
    reward_std: float = 1e-6
    weights_delta: float = 1e-7
    entropy_ratio: float = 0.15
    entropy_growth: float = 2.0
    diversity_ratio: float = 0.7
    length_ratio: float = 2.0
    held_out_loss: float = 0.05
    perplexity_growth: float = 2.0
    explained_variance: float = -0.05
    approximate_kl: float = 0.1
    clip_ratio: float = 0.5
    effective_share: float = 0.1
    patience: int = 5
    eight_bits: bool = False

    def for_half_precision(self) -> "Limits":
        """Wider where 16-bit arithmetic alone makes log-probabilities differ."""
        return self._wider(0.05)

    def for_eight_bits(self) -> "Limits":
        """Wider where the base computes in 8 bits (LLM.int8(), Dettmers et al. 2022, section 3.2).

        Its activations are rounded to 127 steps, and a column of them stays in 16 bits where any token of the batch is
        an outlier. So a token is computed otherwise beside all others, as scoring does it, than beside the newest ones,
        as sampling does. Measured on a GPT-2 of 10 million trained weights (docs/adapters.md): 0.0047 to 0.0072 nats a
        token in the mean, 0.067 for the worst token. The limit is on the mean: 0.05 is seven times the largest of
        them, for models that round more, and still less than that worst token. Bases in 4 bits round weights alone,
        which is the same for every batch, and need none.
        """
        return replace(self._wider(0.05), eight_bits=True)

    def _wider(self, nats: float) -> "Limits":
        return replace(self, kl_at_start=max(self.kl_at_start, nats), log_prob_gap=max(self.log_prob_gap, nats))


class History:
    """The rows of a log in order, and each key's values. Adding and looking up cost the same however long it grows."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()):
        self.last: Mapping[str, Any] = {}
        self.length = 0
        self._points: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.updates = 0
        """Rows before the newest at which the learning rate was above 0: what may have moved the weights."""
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """One log call: metrics by name, and `step`."""
        rate = self.last.get("learning_rate")
        self.updates += int(is_number(rate) and rate > 0)  # type: ignore[operator]
        self.last = row
        self.length += 1
        step = int(row.get("step") or 0)
        for key, value in row.items():
            if is_number(value) and math.isfinite(value):
                self._points[key].append((step, float(value)))

    def forget_after(self, step: int) -> None:
        """Drop what was logged after a step: a run that went back has left that stretch."""
        for points in self._points.values():
            while points and points[-1][0] > step:
                points.pop()

    def __contains__(self, key: str) -> bool:
        return bool(self._points.get(key))

    @property
    def step(self) -> int:
        """The newest row's step."""
        return int(self.last.get("step") or 0)

    def keys(self) -> list[str]:
        """Every key that ever had a number."""
        return [key for key, points in self._points.items() if points]

    def points(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a key, finite values only."""
        return self._points.get(key) or []

    def newest(self, key: str, count: int = 1) -> list[float]:
        """The last values, at most `count`."""
        return [value for _, value in self.points(key)[-count:]]

    def start_and_now(self, key: str, width: int = 3) -> tuple[float, float] | None:
        """Medians of the first and the last `width` values, once they do not overlap."""
        points = self.points(key)
        if len(points) < 2 * width:
            return None
        return median(v for _, v in points[:width]), median(v for _, v in points[-width:])


def is_number(value: Any) -> bool:
    """Whether a value is one number (booleans are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def first_present(history: History, *keys: str) -> str | None:
    """The first of these keys that the log has."""
    return next((key for key in keys if key in history), None)
