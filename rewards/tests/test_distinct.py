"""The reward `distinct` against the metric that it is a share of, and against counting anew."""

import copy
import random
from collections import Counter

import pytest
from alignkit_rewards import Distinct

from alignkit.errors import RewardError
from alignkit.metrics.diversity import distinct
from alignkit.metrics.words import ngrams, words

WORDS = ["that", "is", "so", "nice", "oh", "no", ".", "really"]


def texts(number, seed, shortest=3):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(shortest, 9))) for _ in range(number)]


def scored(reward, completions):
    return reward(prompts=[""] * len(completions), completions=completions)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_mean_over_texts_scored_among_the_others_is_distinct_n(n, seed):
    found = texts(30, seed)
    total, weights = 0.0, 0
    for i, text in enumerate(found):
        reward = Distinct(n=n, window=100)
        others = found[:i] + found[i + 1 :]
        reward.update([""] * len(others), others, [None] * len(others))
        grams = len(ngrams(words(text), n))
        total, weights = total + grams * scored(reward, [text])[0], weights + grams
    assert total / weights == pytest.approx(distinct(found, n), abs=1e-12)


def test_it_remembers_the_latest_ones_and_no_others():
    """However they came, many at a time or more than there is room for: the same as counting the last ones anew."""
    found, reward = texts(50, 9, shortest=1), Distinct(n=2, window=7)
    for start, size in ((0, 3), (3, 1), (4, 20), (24, 26)):
        figures = reward.update([""] * size, found[start : start + size], [None] * size)
        latest = found[max(start + size - 7, 0) : start + size]
        anew = Distinct(n=2, window=7)
        anew.update([""] * len(latest), latest, [None] * len(latest))
        assert scored(reward, found) == scored(anew, found)
        counts = Counter(gram for text in latest for gram in ngrams(words(text), min(2, len(words(text)))))
        assert figures == {"distinct": len(counts) / counts.total()}


def test_scores_are_in_range_and_do_not_depend_on_what_stands_beside():
    found, reward = [*texts(20, 3, shortest=1), "", "oh"], Distinct()
    reward.update([""] * 10, found[:10], [None] * 10)
    together = scored(reward, found)
    assert together == [scored(reward, [text])[0] for text in found]
    assert all(0 < score <= 1 for score in [*together[:20], together[21]]) and together[20] == 0.0


def test_what_everybody_is_told_is_worth_little_and_saying_it_twice_less():
    reward = Distinct(n=2, window=100)
    reward.update([""] * 99, ["that is nice"] * 99, [None] * 99)
    common, new, twice = scored(reward, ["that is nice", "oh no", "oh no . oh no"])
    assert (common, new) == (0.01, 1.0) and twice == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)


def test_scoring_does_not_teach_and_the_state_is_all_that_it_knows():
    reward = Distinct(n=2, window=5)
    reward.update([""] * 8, texts(8, 1), [None] * 8)
    state = copy.deepcopy(reward.state_dict())
    before = scored(reward, texts(6, 2))
    assert scored(reward, texts(6, 2)) == before and reward.state_dict() == state
    other = Distinct(n=2, window=5)
    other.update([""] * 3, texts(3, 5), [None] * 3)
    other.load_state_dict(state)
    assert scored(other, texts(6, 2)) == before
    more = texts(4, 6)
    assert other.update([""] * 4, more, [None] * 4) == reward.update([""] * 4, more, [None] * 4)
    assert other.state_dict() == reward.state_dict()


@pytest.mark.parametrize("wrong", [{"n": 0}, {"window": 0}, {"n": 1.5}, {"window": True}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(RewardError, match="is a whole number of 1 or more"):
        Distinct(**wrong)
