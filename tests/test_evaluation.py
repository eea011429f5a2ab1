"""Rows to figures, intervals and results.json."""

import json
import math

import evaluate
import numpy as np
import pytest
from datasets import Features, Value

from alignkit.errors import ConfigError, DataError, MissingColumnError
from alignkit.evaluation import bootstrap_interval, evaluate_rows, intervals, real_text_rows, write_results
from alignkit.metrics import load_metric
from alignkit.metrics.reward import RewardMetric


def row(prompt="p", completion="a b", reference="x y z", reward=1.0, **columns):
    return {
        "prompt": prompt,
        "completion": completion,
        "rewards": {"r": reward},
        "reward": reward,
        "length": len(completion.split()),
        "kl": 0.5,
        "reference": reference,
        "columns": columns,
    }


def test_metrics_of_one_evaluation_come_under_their_own_keys():
    rows = [row(completion="a b c"), row(completion="a b d")]
    figures = evaluate_rows(rows, {name: load_metric(name) for name in ("diversity", "repetition", "overlap")})
    assert set(figures) == {
        *("distinct_1", "distinct_2", "distinct_3", "distinct_2_of_1000", "self_bleu", "duplicates"),
        *("repetition", "looping", "bleu", "sentence_bleu", "f1"),
    }
    assert figures["distinct_1"] == pytest.approx(4 / 6)


def test_a_reward_metric_gets_the_columns_of_the_rows():
    def agrees(prompts, completions, *, label, **columns):
        return [float(text.startswith(wanted)) for text, wanted in zip(completions, label, strict=True)]

    figures = evaluate_rows([row(label="a"), row(label="b")], {"judge": RewardMetric(agrees)})
    assert figures["agrees"] == 0.5 and figures["agrees_positive_share"] == 0.5


class ExactMatch(evaluate.Metric):
    """A metric as its author would write it for the evaluate library, knowing nothing of alignkit."""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        hits = [a == b for a, b in zip(predictions, references, strict=True)]
        return {"exact": np.mean(hits), "hits": hits}


def test_a_metric_of_the_evaluate_library_gets_the_features_it_declares():
    rows = [row(completion="x"), row(completion="x", reference=[{"role": "assistant", "content": "x"}])]
    assert evaluate_rows(rows, {"exact": ExactMatch(keep_in_memory=True)}) == {"exact": 0.5}
    with pytest.raises(MissingColumnError, match="'exact' needs the column 'reference'"):
        evaluate_rows([row(reference=None)], {"exact": ExactMatch(keep_in_memory=True)})


def test_two_metrics_under_one_key_and_no_rows_are_refused():
    with pytest.raises(ConfigError, match="'one' and 'two' both report 'words_mean'"):
        evaluate_rows([row()], {"one": load_metric("length"), "two": load_metric("length")})
    with pytest.raises(DataError, match="empty"):
        evaluate_rows([], {"one": load_metric("length")})


def test_real_text_is_cut_to_the_length_beside_it():
    rows = real_text_rows([row(completion="a b", reference="x y z"), row(reference=None)])
    assert [r["completion"] for r in rows] == ["x y"]


def test_values_that_differ_by_rounding_have_their_mean_as_interval():
    values = [0.8 + i / 7 - (0.5 + i / 7) for i in range(9)]
    assert len(set(values)) > 1
    assert bootstrap_interval(values) == (pytest.approx(0.3), pytest.approx(0.3))
    assert bootstrap_interval([1e-17, -1e-17, 0.0]) == (pytest.approx(0.0), pytest.approx(0.0))


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        low, high = bootstrap_interval(generator.exponential(1.0, 40), resamples=300, seed=seed)
        covered += low <= 1.0 <= high
    assert 50 <= covered <= 60


def test_an_interval_of_one_value_or_equal_values_is_a_point():
    assert bootstrap_interval([2.0]) == (2.0, 2.0)
    assert bootstrap_interval([3.0, 3.0, 3.0]) == (3.0, 3.0)
    for values in ([], [1.0, math.nan]):
        with pytest.raises(DataError, match="finite values"):
            bootstrap_interval(values)


def test_the_change_is_measured_on_the_same_prompts():
    """Prompts differ far more than the change: paired, it is certain; unpaired it would drown."""
    before = [row(prompt=str(i), reward=float(i)) for i in range(30)]
    after = [row(prompt=str(i), reward=i + 1 + 0.1 * (i % 2)) for i in range(30)]
    found = intervals(before, after)
    low, high = found["reward"]["change"]
    assert 1.0 < low < 1.05 < high < 1.1
    assert found["rewards/r/mean"]["change"] == found["reward"]["change"]
    assert "change" not in intervals(before, after[::-1])["reward"]


def test_results_hold_before_and_after_and_only_valid_json(tmp_path):
    rows = [row(prompt=str(i), reward=float(i)) for i in range(5)]
    path = write_results(
        tmp_path / "run",
        {"reward": 0.5},
        {"reward": float("nan")},
        before_rows=rows,
        after_rows=rows,
        real_text={"a": 1},
    )
    results = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert results["before"] == {"reward": 0.5} and results["after"] == {"reward": None}
    assert results["real_text"] == {"a": 1} and results["intervals"]["reward"]["change"] == [0.0, 0.0]
