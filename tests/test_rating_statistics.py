"""The statistics of ratings against published examples, enumeration and what follows from their definitions."""

import itertools

import numpy as np
import pytest
from scipy import stats

from alignkit.rating.statistics import agreement, compare, estimate, holm, item_means

NO = np.nan
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NO, NO, NO],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NO, 3],
        [NO, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NO],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NO],
    ]
)
# Darwin's plants, crossed minus self-fertilised, in eighths of an inch (Fisher 1935); R's wilcox.test gives 0.04126.
DARWIN = np.array([6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75.0])


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_published_example(level, published):
    pytest.importorskip("krippendorff", reason="part of the rate extra")
    found = agreement(OBSERVERS, level)
    assert round(found.alpha, 3) == published
    assert found.pairable == 11, "one unit has a single observer and does not count"


def test_alpha_of_intervals_is_its_definition_on_incomplete_ratings():
    pytest.importorskip("krippendorff", reason="part of the rate extra")
    chance = np.random.default_rng(3)
    ratings = chance.integers(1, 6, size=(3, 20)).astype(float)
    ratings[chance.random(ratings.shape) < 0.3] = NO
    columns = [[v for v in column if not np.isnan(v)] for column in ratings.T]
    columns = [column for column in columns if len(column) > 1]
    everything = [v for column in columns for v in column]
    n = len(everything)
    within = sum(
        sum((a - b) ** 2 for a, b in itertools.permutations(column, 2)) / (len(column) - 1) for column in columns
    )
    between = sum((a - b) ** 2 for a, b in itertools.permutations(everything, 2))
    assert agreement(ratings, "interval").alpha == pytest.approx(1 - (within / n) / (between / (n * (n - 1))))


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [
        ([[NO, NO]], "there is none"),
        ([[1, 2], [NO, NO]], "there is one"),
        ([[1, NO], [NO, 2]], "no response was rated by two"),
        ([[3, 3], [3, NO]], "all ratings are the same"),
        ([[3, 1], [3, NO]], "all ratings are the same"),
    ],
)
def test_where_alpha_is_not_defined_it_says_why(ratings, reason):
    found = agreement(np.array(ratings, dtype=float))
    assert found.alpha is None and reason in found.reason


def test_an_items_mean_is_over_those_who_rated_it():
    means = item_means(np.array([[5, 2, NO], [4, NO, NO], [3, 3, NO]]))
    assert means[:2].tolist() == [4.0, 2.5] and np.isnan(means[2])


def test_items_weigh_alike_however_many_rated_them():
    found = estimate(np.array([[5, 1, NO], [5, NO, NO], [5, NO, NO]]))
    assert (found.mean, found.items, found.ratings) == (3.0, 2, 4), "not 16 / 4"


def test_more_raters_who_say_the_same_make_no_interval_narrower():
    """Over ratings drawn singly, ten equal raters would narrow it to a third."""
    one = np.random.default_rng(0).integers(1, 6, size=(1, 40)).astype(float)
    alone, repeated = estimate(one, seed=5), estimate(np.repeat(one, 10, axis=0), seed=5)
    assert (alone.low, alone.high) == pytest.approx((repeated.low, repeated.high))
    assert (alone.ratings, repeated.ratings) == (40, 400)


def test_the_interval_is_close_to_the_t_interval_and_the_same_again():
    items = np.random.default_rng(1).normal(3, 0.8, size=(1, 50))
    found = estimate(items)
    expected = stats.t.interval(0.95, 49, items.mean(), stats.sem(items[0]))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.03)
    assert found == estimate(items) != estimate(items, seed=1)


@pytest.mark.slow
def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    chance = np.random.default_rng(2)
    points = np.arange(1, 6)
    shares = [0.1, 0.1, 0.2, 0.3, 0.3]
    true = (points * shares).sum()
    found = [estimate(chance.choice(points, size=(1, 50), p=shares).astype(float)) for _ in range(150)]
    covered = sum(one.low <= true <= one.high for one in found)
    # 150 draws of 0.95: three standard deviations are 8
    assert abs(covered - 142.5) < 9


@pytest.mark.parametrize(
    ("ratings", "mean", "reason"),
    [([[NO, NO]], None, "no ratings"), ([[4, NO]], 4.0, "one item"), ([[4, 3], [2, 3]], 3.0, "the same mean")],
)
def test_an_interval_that_cannot_be_says_why(ratings, mean, reason):
    found = estimate(np.array(ratings, dtype=float))
    assert found.mean == mean and found.low is found.high is None and reason in found.reason


def test_the_signed_rank_test_is_that_of_the_published_example():
    found = compare(DARWIN, np.zeros(15))
    assert found.p == pytest.approx(0.04126, abs=5e-6)
    assert (found.items, found.higher, found.equal, found.reason) == (15, 13, 0, None)
    assert found.difference == pytest.approx(20.9333, abs=1e-4)


def by_enumeration(differences: np.ndarray) -> float:
    """Two-sided p of the signed-rank sum over all signs, ties with mean ranks."""
    ranks = stats.rankdata(np.abs(differences))
    half = ranks.sum() / 2
    seen = abs((ranks * (differences > 0)).sum() - half)
    sums = [abs(np.dot(ranks, signs) - half) for signs in itertools.product((0, 1), repeat=len(ranks))]
    return float(np.mean([distance >= seen - 1e-9 for distance in sums]))


@pytest.mark.parametrize("seed", range(5))
def test_few_items_with_ties_are_tested_exactly_and_equal_ones_left_out(seed):
    chance = np.random.default_rng(seed)
    first, second = chance.integers(1, 6, size=(2, 12)) / 2
    second[:3] = first[:3]
    first[4], second[5] = NO, NO
    left = (first - second)[~np.isnan(first - second)]
    found = compare(first, second)
    assert found.p == pytest.approx(by_enumeration(left[left != 0]))
    assert (found.items, found.equal) == (10, int((left == 0).sum()))


def test_means_that_differ_only_in_their_last_bit_are_ties():
    """0.1 + 0.2 - 0.3 is not 0 in floats; one item such would be counted as a difference."""
    found = compare(np.array([0.1 + 0.2, 4, 5]), np.array([0.3, 3, 3]))
    assert (found.equal, found.higher) == (1, 2)


def test_what_cannot_be_tested_says_why():
    assert compare(np.array([NO, 1]), np.array([2, NO])).reason == "no test without an item that has ratings of both"
    alike = compare(np.array([2.0, 3]), np.array([2.0, 3]))
    assert (alike.p, alike.difference) == (None, 0.0) and "alike on every item" in alike.reason
    few = compare(np.arange(1.0, 6), np.zeros(5))
    assert few.p == 0.0625 and "only 5 items differ, so p cannot be below 0.0625" in few.reason
    assert compare(np.arange(1.0, 7), np.zeros(6)).reason is None


def test_holms_correction_is_that_of_p_adjust():
    """R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")."""
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.9, None, 0.8]) == [1.0, None, 1.0]
    assert holm([]) == []
