"""The classifier two-sample test: what can be told apart, what cannot, and what it leaves alone."""

import random

import pytest
import torch
from sklearn.metrics import roc_auc_score

from alignkit import load_metric
from alignkit.errors import ConfigError, MissingColumnError
from alignkit.models.tiny import tiny_classifier, tiny_tokenizer

WORDS = ["the", "film", "was", "good", "bad", "plot", "dull", "very", "it"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tiny_classifier().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def texts(count, seed, words=WORDS):
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(3, 8))) for _ in range(count)]


def compared(encoder, own, people, **settings):
    metric = load_metric("two_sample", model=encoder, **settings)
    return metric.compute(predictions=own, columns={"reference": people})["two_sample"]


def test_texts_of_one_kind_cannot_be_told_apart_and_of_two_kinds_can(encoder):
    people = texts(150, 1)
    same = [compared(encoder, texts(150, seed), people) for seed in (2, 3, 4)]
    assert 0.4 < sum(same) / 3 < 0.6
    assert compared(encoder, texts(150, 2, ["bad", "dull"]), people) > 0.95
    half = texts(75, 2, ["bad", "dull"]) + texts(75, 5)
    assert max(same) < compared(encoder, half, people) < 0.95


def test_no_text_is_judged_by_a_regression_that_has_seen_it(encoder):
    """Random states as many as texts: a regression without a penalty knows those that it saw, and no others."""
    metric = load_metric("two_sample", model=encoder, strength=1e6)
    drawn = torch.Generator().manual_seed(0)
    metric._states = lambda given: torch.randn((len(given), 60), generator=drawn).numpy()
    found = metric.compute(predictions=texts(30, 1), columns={"reference": texts(30, 2)})["two_sample"]
    assert abs(found - 0.5) < 0.25


def test_the_figure_is_the_area_under_the_curve_of_what_the_folds_say(encoder, monkeypatch):
    seen = {}

    def judged(labels, scores):
        seen.update(labels=labels, scores=scores)
        return roc_auc_score(labels, scores)

    monkeypatch.setattr("alignkit.metrics.two_sample.roc_auc_score", judged)
    found = compared(encoder, texts(20, 1), texts(30, 2))
    assert seen["labels"].tolist() == [0] * 20 + [1] * 30 and len(seen["scores"]) == 50
    pairs = [(p > q) + 0.5 * (p == q) for p in seen["scores"][20:] for q in seen["scores"][:20]]
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_padding_and_order_do_not_matter_and_the_random_state_is_left_alone(encoder):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    metric = load_metric("two_sample", model=encoder, batch_size=3)
    own = texts(12, 7)
    many = metric._states(own)
    alone = load_metric("two_sample", model=encoder, batch_size=1)._states(own)
    assert many == pytest.approx(alone, abs=1e-5)
    assert torch.equal(torch.random.get_rng_state(), before)
    people = texts(12, 8)
    metric.compute(predictions=own, columns={"reference": people})
    (kept,) = metric._read.values()
    metric.compute(predictions=texts(12, 9), columns={"reference": people})
    assert metric._read[tuple(people)] is kept


def test_what_is_missing_is_said(encoder):
    with pytest.raises(ConfigError, match="has no encoder to read with; give it one"):
        compared(None, texts(9, 1), texts(9, 2))
    with pytest.raises(MissingColumnError, match=r"needs a column 'reference'.*the data has: persona"):
        load_metric("two_sample", model=encoder).compute(predictions=["a"], columns={"persona": ["b"]})
    with pytest.raises(ConfigError, match="3 completions and 9 references for 5 folds; give it at least that many"):
        compared(encoder, texts(3, 1), texts(9, 2))
