"""BLEU among many texts, ROUGE and the oracle's likelihood, against computations that share no code with them."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.errors import ConfigError, MissingColumnError
from alignkit.metrics import load_metric
from alignkit.metrics.bleu import ORDERS, References
from alignkit.models.oracle import OracleLSTM

SENTENCES = st.lists(st.sampled_from(list("abcd")), min_size=1, max_size=9)
GROUPS = st.lists(SENTENCES, min_size=2, max_size=6)


def bleu_by_definition(hypothesis, references, order):
    """Clipped precisions, closest length, method 1 of Chen and Cherry: from the papers, nothing counted before."""
    precisions = []
    for n in range(1, order + 1):
        grams = [tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1)]
        matched = 0
        for gram in set(grams):
            most = max(
                sum(tuple(reference[i : i + n]) == gram for i in range(len(reference) - n + 1))
                for reference in references
            )
            matched += min(grams.count(gram), most)
        if n == 1 and matched == 0:
            return 0.0
        precisions.append((matched if matched else 0.1) / max(len(grams), 1))
    closest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
    penalty = 1.0 if len(hypothesis) > closest else math.exp(1 - closest / len(hypothesis))
    return penalty * math.prod(precisions) ** (1 / order)


@settings(max_examples=60, deadline=None)
@given(SENTENCES, GROUPS)
def test_bleu_against_many_references_is_that_of_the_papers(hypothesis, references):
    expected = [bleu_by_definition(hypothesis, references, order) for order in ORDERS]
    assert References(references).bleu(hypothesis) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(GROUPS)
def test_self_bleu_holds_each_text_against_all_others(group):
    found = load_metric("self_bleu").compute(predictions=[" ".join(text) for text in group])
    for order in ORDERS:
        expected = [bleu_by_definition(t, group[:i] + group[i + 1 :], order) for i, t in enumerate(group)]
        assert found[f"self_bleu_{order}"] == pytest.approx(sum(expected) / len(group))


def test_both_are_what_texygen_calls_them():
    """Texygen takes nltk's sentence BLEU with its first smoothing method, and the mean over sentences."""
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    rng = random.Random(0)
    made, real = ([[rng.choice("abcdefgh") for _ in range(rng.randint(3, 14))] for _ in range(30)] for _ in range(2))
    metric, smooth = load_metric("bleu"), nltk.SmoothingFunction().method1
    texts = [" ".join(text) for text in made]
    found = metric.compute(predictions=texts, columns={"reference": [" ".join(text) for text in real]})
    among = load_metric("self_bleu").compute(predictions=texts)
    for order in ORDERS:
        weights = [1 / order] * order
        each = [nltk.sentence_bleu(real, text, weights, smoothing_function=smooth) for text in made]
        assert found[f"bleu_{order}"] == pytest.approx(sum(each) / len(each))
        each = [
            nltk.sentence_bleu(made[:i] + made[i + 1 :], text, weights, smoothing_function=smooth)
            for i, text in enumerate(made)
        ]
        assert among[f"self_bleu_{order}"] == pytest.approx(sum(each) / len(each))


def test_every_row_has_all_references_and_empty_texts_count_nothing():
    columns = {"reference": ["a red bus on a road", "two dogs sleep", None]}
    found = load_metric("bleu").compute(predictions=["two dogs sleep", "a red bus on a road", ""], columns=columns)
    # a text of three words has no 4-gram: the smoothing's 0.1 of one
    assert found["bleu_2"] == pytest.approx(2 / 3) and found["bleu_4"] == pytest.approx((0.1**0.25 + 1) / 3)
    with pytest.raises(MissingColumnError, match=r"'bleu' needs a column 'reference'.*persona"):
        load_metric("bleu").compute(predictions=["a"], columns={"persona": ["b"]})


def test_self_bleu_of_many_texts_uses_a_fixed_choice():
    texts = [f"text {i} of many that differ by {i % 7} and {i % 5}" for i in range(60)]
    first, again, other = (
        load_metric("self_bleu", samples=10, seed=seed).compute(predictions=texts) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert load_metric("self_bleu").compute(predictions=["alone"])["self_bleu_4"] == 0.0


def longest_common(one, other):
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + longest_common(one[:-1], other[:-1])
    return max(longest_common(one[:-1], other), longest_common(one, other[:-1]))


def f_measure(shared, own, other):
    return 2 * shared / (own + other) if shared else 0.0


@pytest.fixture
def rouge():
    pytest.importorskip("rouge_score", reason="rouge-score is a dependency; an older environment lacks it")
    return load_metric("rouge", stemmer=False)


def test_rouge_is_the_f_measure_of_shared_words_pairs_and_subsequences(rouge):
    rng = random.Random(1)
    texts, references = ([[rng.choice("abcde") for _ in range(rng.randint(1, 8))] for _ in range(12)] for _ in range(2))
    columns = {"reference": [" ".join(reference) for reference in references]}
    found = rouge.compute(predictions=[" ".join(text) for text in texts], columns=columns)
    expected = {"rouge_1": [], "rouge_2": [], "rouge_l": []}
    for text, reference in zip(texts, references, strict=True):
        for n in (1, 2):
            ours, theirs = (Counter(zip(*(t[i:] for i in range(n)), strict=False)) for t in (text, reference))
            expected[f"rouge_{n}"].append(f_measure((ours & theirs).total(), ours.total(), theirs.total()))
        expected["rouge_l"].append(f_measure(longest_common(text, reference), len(text), len(reference)))
    for key, scores in expected.items():
        assert rouge.row_scores[key] == pytest.approx(scores)
        assert found[key] == pytest.approx(sum(scores) / len(scores))


def test_rouge_takes_the_best_of_several_references_and_skips_rows_without(rouge):
    columns = {"reference": [["q w", "the cat sat"], None], "other": ["x", "y"]}
    found = rouge.compute(predictions=["the cat sat", "anything"], columns=columns)
    assert found == {"rouge_1": 1.0, "rouge_2": 1.0, "rouge_l": 1.0}
    assert rouge.row_scores["rouge_1"] == [1.0, None]
    stems = load_metric("rouge").compute(predictions=["cats sat"], columns={"reference": ["cat sat"]})
    plain = rouge.compute(predictions=["cats sat"], columns={"reference": ["cat sat"]})
    assert stems["rouge_1"] == 1.0 and plain["rouge_1"] == 0.5
    with pytest.raises(MissingColumnError, match="'rouge' needs a column 'summary'"):
        load_metric("rouge", column="summary").compute(predictions=["a"], columns={"reference": ["a"]})


def test_the_oracles_likelihood_is_that_of_its_own_words():
    oracle = OracleLSTM(vocabulary=30, length=6, seed=3)
    drawn = oracle.sample(40, seed=1)
    texts = [oracle.text(words) for words in drawn.tolist()]
    metric = load_metric("oracle_nll", vocabulary=30, length=6, oracle_seed=3)
    found = metric.compute(predictions=texts, columns={"reference": texts})
    assert found["oracle_nll"] == pytest.approx(-oracle.log_probs(drawn).mean())
    assert found["oracle_nll_short"] == found["oracle_nll_invalid"] == 0.0
    random_texts = [oracle.text([(7 * i + j) % 30 for j in range(6)]) for i in range(40)]
    assert metric.compute(predictions=random_texts)["oracle_nll"] > found["oracle_nll"] + 1


def test_what_the_oracle_cannot_write_is_counted_and_not_scored():
    oracle = OracleLSTM(vocabulary=30, length=3)
    metric = load_metric("oracle_nll", vocabulary=30, length=3)
    texts = ["w1 w2 w3", "w1 w2", "", "w1 w2 w3 w4", "w1 w2 w99", "a w1 w2", "w01 w2 w3"]
    found = metric.compute(predictions=texts)
    beginning = -oracle.log_probs(oracle.sample(1, 0) * 0 + [[1, 2, 3]])[0]
    assert metric.nll(texts) == [pytest.approx(beginning.mean()), pytest.approx(beginning[:2].mean()), *[None] * 5]
    assert found["oracle_nll_short"] == pytest.approx(1 / 7) and found["oracle_nll_invalid"] == pytest.approx(5 / 7)
    assert math.isnan(metric.compute(predictions=["no"])["oracle_nll"])


def test_references_of_another_oracle_are_noticed():
    other = OracleLSTM(vocabulary=200, length=20, seed=1)
    texts = [other.text(words) for words in other.sample(50, seed=0).tolist()]
    for settings_of_it in ({"oracle_seed": 0}, {"oracle_seed": 1, "length": 10}):
        with pytest.raises(ConfigError, match="did not write the references of the data"):
            load_metric("oracle_nll", **settings_of_it).compute(predictions=texts, columns={"reference": texts})
    assert load_metric("oracle_nll", oracle_seed=1).compute(predictions=texts, columns={"reference": texts})
