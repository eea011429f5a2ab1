"""What ratings say: means with intervals, agreement of the raters, tests between systems. Arrays in, numbers out.

A *unit* is one response, of one system to one item; an *item* is a context that all systems replied to. Ratings come as
arrays with a row per rater and NaN where that rater gave none. Whatever cannot be computed is None, with a reason.

    R   raters
    N   items
    U   units: items times systems
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from alignkit.errors import ConfigError

Level = Literal["nominal", "ordinal", "interval"]
RESAMPLES = 9999
# Means of the same few numbers, added in another order, differ in their last bits; as ratings they are equal.
_DIGITS = 9


@dataclass(frozen=True)
class Estimate:
    """A mean over items.

    Attributes:
        mean: of the items' means, None without any.
        low: lower end of the confidence interval, None where there is none.
        high: its upper end.
        items: how many have at least one rating.
        ratings: how many there are.
        reason: why something is None.
    """

    mean: float | None
    low: float | None
    high: float | None
    items: int
    ratings: int
    reason: str | None = None


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha: 1 where raters always agree, 0 where they agree as often as chance would have it.

    Attributes:
        alpha: None where it is not defined.
        pairable: units with ratings by two raters or more; only these count.
        reason: why alpha is None.
    """

    alpha: float | None
    pairable: int
    reason: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Wilcoxon's signed-rank test between two systems on the items that both have ratings for.

    Attributes:
        difference: mean over items of first minus second, None without common items.
        items: that both have ratings for.
        higher: items on which the first is rated higher.
        equal: items on which both are rated alike; the test leaves them out.
        p: two-sided, None where the test cannot be done.
        reason: why p is None, or what it cannot show.
    """

    difference: float | None
    items: int
    higher: int
    equal: int
    p: float | None
    reason: str | None = None


def item_means(ratings: np.ndarray) -> np.ndarray:
    """(R, N) ratings to (N,) means over the raters who rated the item, NaN where nobody did.

    >>> item_means(np.array([[4, 2, np.nan], [5, np.nan, np.nan]]))
    array([4.5, 2. , nan])
    """
    known = ~np.isnan(ratings)
    count = known.sum(axis=0)
    total = np.where(known, ratings, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(ratings.shape[1], np.nan), where=count > 0)


def estimate(ratings: np.ndarray, *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of one system, with a bootstrap interval (BCa, Efron 1987) over items.

    Items are drawn anew, each with all of its ratings: ratings of one response by several raters are not independent,
    and drawn singly they would make the interval too narrow.

    Args:
        ratings: (R, N) of one system.
        confidence: of the interval.
        seed: of the draws.
    """
    means = item_means(ratings)
    means = means[~np.isnan(means)]
    count = int((~np.isnan(ratings)).sum())
    if len(means) == 0:
        return Estimate(None, None, None, 0, 0, "no ratings")
    mean = float(means.mean())
    if len(means) < 2:
        return Estimate(mean, None, None, 1, count, "no interval from one item")
    if np.ptp(means.round(_DIGITS)) == 0:
        return Estimate(mean, None, None, len(means), count, "no interval where all items have the same mean")
    drawn = stats.bootstrap(
        (means,), np.mean, confidence_level=confidence, n_resamples=RESAMPLES, method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate(mean, float(drawn.low), float(drawn.high), len(means), count)


def agreement(ratings: np.ndarray, level: Level = "ordinal") -> Agreement:
    """Krippendorff's alpha of one question (Krippendorff 2011), over the responses of all systems.

    Args:
        ratings: (R, U).
        level: of measurement: `ordinal` weighs a disagreement by how many ratings lie between two points, `interval`
            by the square of their distance, `nominal` all alike.

    Raises:
        ConfigError: the package krippendorff is not installed.
    """
    given = ~np.isnan(ratings)
    raters = int(given.any(axis=1).sum())
    shared = given.sum(axis=0) >= 2
    pairable = int(shared.sum())
    if raters < 2:
        return Agreement(None, 0, f"no agreement without two raters, there {'is one' if raters == 1 else 'is none'}")
    if pairable == 0:
        return Agreement(None, 0, "no agreement where no response was rated by two raters")
    values = ratings[:, shared]
    if len(np.unique(values[~np.isnan(values)])) < 2:
        return Agreement(
            None, pairable, "no agreement where all ratings are the same: without variation alpha is not defined"
        )
    try:
        import krippendorff
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the agreement of raters is computed by the package krippendorff, which is not installed; install it with "
            "pip install -e '.[rate]'"
        ) from error
    return Agreement(float(krippendorff.alpha(reliability_data=values, level_of_measurement=level)), pairable)


def compare(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Two systems by their items' means, (N,) each and in the same order, NaN where an item has no rating."""
    both = ~np.isnan(first) & ~np.isnan(second)
    differences = (first[both] - second[both]).round(_DIGITS)
    items, higher, equal = len(differences), int((differences > 0).sum()), int((differences == 0).sum())
    if items == 0:
        return Comparison(None, 0, 0, 0, None, "no test without an item that has ratings of both")
    difference = float(differences.mean())
    unequal = items - equal
    if unequal == 0:
        return Comparison(difference, items, 0, equal, None, "no test where both are rated alike on every item")
    # What scipy would leave out itself; without it, few differences are still tested exactly.
    p = float(stats.wilcoxon(differences[differences != 0]).pvalue)
    least = 2.0 ** (1 - unequal)
    reason = None
    if least > 0.05:
        plural = "item differs" if unequal == 1 else "items differ"
        reason = f"only {unequal} {plural}, so p cannot be below {least:.3g}"
    return Comparison(difference, items, higher, equal, p, reason)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values, adjusted for their number after Holm (1979); None stays None and does not count.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted
