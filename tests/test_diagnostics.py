"""Each monitor on runs that have the fault and on runs that do not, and the watch that remembers."""

import math
import time

import pytest

from alignkit.diagnostics import CHECKS, History, Limits, Watch, review


def healthy(step, **changes):
    """A log row of a run in which nothing is wrong."""
    row = {
        "step": step,
        "loss": 0.1,
        "grad_norm": 1.0,
        "learning_rate": 1e-5,
        "reward": 0.5 + 0.01 * step,
        "reward_std": 0.2,
        "frac_reward_zero_std": 0.1,
        "kl": 0.2 * (step - 1),
        "kl_per_token": 0.01 * (step - 1),
        "entropy": 3.0 - 0.01 * step,
        "completions/mean_length": 30.0,
        "completions/clipped_ratio": 0.2,
        "sampling/logp_difference_mean": 1e-6,
        "sampling/logp_difference_max": 1e-5,
        "weights/delta": 1e-5 * step,
        "value/explained_variance": min(0.05 * step, 0.8),
        "approx_kl": 0.01,
        "clip_ratio": 0.05,
        "ess": 4.0,
        "ess/share": 0.5,
    }
    return row | changes


def run(steps=30, evaluations=None, **changes):
    """Rows of a run; a change is a value, or a function of the step. `evaluations`: step -> held-out figures."""
    rows = []
    for step in range(1, steps + 1):
        made = {key: value(step) if callable(value) else value for key, value in changes.items()}
        row = healthy(step, **made)
        rows.append({key: value for key, value in row.items() if value is not KEYLESS})
        if step in (evaluations or {}):
            rows.append({"step": step, **{f"eval_{key}": value for key, value in evaluations[step].items()}})
    return rows


KEYLESS = object()
STEADY = {10: {"judge_positive_share": 0.5, "distinct_2": 0.6}, 20: {"judge_positive_share": 0.6, "distinct_2": 0.6}}
STEADY[30] = {"judge_positive_share": 0.7, "distinct_2": 0.58}


def by_check(rows, limits=None):
    return {finding.check: finding for finding in review(rows, limits)}


def test_a_healthy_run_passes_every_check():
    found = by_check(run(evaluations=STEADY))
    assert list(found) == list(CHECKS)
    assert {finding.status for finding in found.values()} == {"ok"}


EVALS = [10, 20, 30, 40]
FAULTS = [
    ("finite", {"loss": lambda step: math.nan if step > 20 else 0.1}, "loss"),
    ("finite", {"policy_loss": lambda step: None if step == 30 else 0.5}, "policy_loss"),
    ("finite", {"grad_norm": math.inf}, "grad_norm"),
    ("kl_at_start", {"kl_per_token": 0.2}, "0.2 nats per token"),
    ("kl_at_start", {"kl_per_token": KEYLESS, "kl": 1.0}, "the KL to the reference is 1 nats"),
    ("sampling", {"sampling/logp_difference_mean": 0.3}, "0.3 nats away (at worst 1e-05)"),
    ("sampling", {"sampling/logp_difference_mean": KEYLESS, "sampling/sampling_logp_difference/mean": 0.1}, "0.1 nats"),
    ("reward_variance", {"reward_std": 0.0, "reward": 1.0}, "the same reward (1)"),
    ("reward_variance", {"frac_reward_zero_std": 0.95}, "95% of the groups"),
    ("weights", {"weights/delta": 0.0}, "have not moved"),
    ("weights", {"weights/delta": 1e-9}, "hardly moved"),
    ("weights", {"weights/delta": KEYLESS, "grad_norm": 0.0}, "gradient has been exactly 0"),
    ("kl", {"kl_per_token": lambda step: 0.1 * (step - 1)}, "far from its reference"),
    ("kl", {"kl_per_token": lambda step: -0.1 * (step > 1)}, "cannot be"),
    ("entropy", {"entropy": lambda step: 3.0 * 0.9**step}, "nearly deterministic"),
    ("entropy", {"entropy": lambda step: 2.0 + 0.2 * step}, "turns to noise"),
    ("diversity", {"completions/distinct_2": lambda step: 0.8 / step}, "Completions have become alike"),
    ("length", {"completions/mean_length": lambda step: 20.0 + step * 2}, "went from 24 to 78"),
    ("length", {"completions/mean_length": lambda step: 60.0 / step}, "went from 30"),
    ("length", {"completions/clipped_ratio": lambda step: min(0.04 * step, 1)}, "no longer end"),
    ("critic", {"value/explained_variance": -0.3}, "worse than their mean"),
    ("update_size", {"approx_kl": 0.4}, "0.4 nats per token"),
    ("update_size", {"clip_ratio": 0.8}, "80% of the tokens"),
    ("weights_spread", {"ess": 1.2, "ess/share": 0.04}, "4% of a prompt's completions"),
    ("weights_spread", {"ess": 1.02, "ess/share": 0.51}, "effective sample size is 1.02"),
]


@pytest.mark.parametrize(
    ("check", "fault", "words"), FAULTS, ids=[f"{check}-{i}" for i, (check, _, _) in enumerate(FAULTS)]
)
def test_each_fault_is_found_named_and_nothing_else_is(check, fault, words):
    found = by_check(run(**fault))
    assert found[check].status == "warn" and words in found[check].message
    assert [name for name, finding in found.items() if finding.status != "ok"] == [check]


def test_one_completion_a_prompt_has_no_weights_to_be_spread():
    assert "weights_spread" not in by_check(run(**{"ess": 1.0, "ess/share": 1.0}))


def falling(key, values, **others):
    return {step: {key: value, **others} for step, value in zip(EVALS, values, strict=True)}


@pytest.mark.parametrize(
    ("key", "values"),
    [("judge_positive_share", [0.5, 0.7, 0.6, 0.5]), ("perplexity", [20, 19, 30, 50]), ("bleu", [0.3, 0.3, 0.2, 0.1])],
)
def test_a_reward_that_rises_while_a_held_out_measure_falls_is_found(key, values):
    finding = by_check(run(40, falling(key, values)))["held_out"]
    assert finding.status == "warn" and key in finding.message and "may be fooling its reward" in finding.message
    best = 20 if key != "bleu" else 10
    assert f"since step {best}" in finding.message


def test_a_held_out_measure_that_falls_together_with_the_reward_is_no_hacking():
    rows = run(40, falling("judge_positive_share", [0.5, 0.7, 0.6, 0.5]), reward=lambda step: 1 - 0.01 * step)
    assert by_check(rows)["held_out"].status == "ok"


def test_noise_in_a_held_out_measure_is_no_hacking():
    assert by_check(run(40, falling("judge_positive_share", [0.68, 0.7, 0.69, 0.68])))["held_out"].status == "ok"


def test_perplexity_may_rise_with_the_distance_from_the_reference_but_not_double():
    assert by_check(run(40, falling("perplexity", [20, 26, 32, 38])))["held_out"].status == "ok"
    assert by_check(run(40, falling("perplexity", [20, 26, 44, 45])))["held_out"].status == "warn"


def test_diversity_is_judged_in_evaluations_and_in_training():
    rows = run(40, falling("distinct_2", [0.6, 0.5, 0.4, 0.3]), **{"completions/distinct_2": 0.5})
    assert "on held-out prompts fell from 0.60 to 0.30" in by_check(rows)["diversity"].message
    # evaluations that began when all was lost already do not hide the fall
    fallen = {"completions/distinct_2": lambda step: 0.8 / step}
    rows = run(40, falling("distinct_2", [0.2, 0.2, 0.2, 0.2]), **fallen)
    assert "in training fell from 0.40 to 0.02" in by_check(rows)["diversity"].message
    rows = run(40, falling("duplicates", [0.0, 0.1, 0.2, 0.4], distinct_2=0.6))
    assert "duplicates rose from 0.00 to 0.40" in by_check(rows)["diversity"].message


def test_a_critic_is_not_blamed_when_there_is_nothing_left_to_predict():
    solved = {"reward_std": lambda step: 0.5 / step, "value/explained_variance": -0.9}
    assert by_check(run(**solved))["critic"].status == "ok"


def test_checks_without_their_figures_stay_silent():
    assert review([{"step": 5, "train_runtime": 3.0}]) != []  # a runtime is a figure, and finite
    assert review([{"step": 1}]) == [] and review([]) == []
    assert "kl_at_start" not in by_check([healthy(5), healthy(10)])
    assert "weights" not in by_check([healthy(1, **{"weights/delta": 0.0})])


def test_a_learning_rate_that_starts_at_zero_is_given_time():
    rows = [healthy(step, **{"learning_rate": 1e-5 * (step - 1), "weights/delta": 0.0}) for step in (1, 2, 3)]
    assert "weights" not in by_check(rows)
    rows += [healthy(step, **{"weights/delta": 0.0}) for step in (4, 5)]
    assert by_check(rows)["weights"].status == "warn"


def test_half_precision_is_allowed_its_rounding():
    rows = run(**{"sampling/logp_difference_mean": 0.03, "kl_per_token": lambda step: 0.02 + 0.01 * (step - 1)})
    assert by_check(rows)["sampling"].status == by_check(rows)["kl_at_start"].status == "warn"
    wider = by_check(rows, Limits().for_half_precision())
    assert wider["sampling"].status == wider["kl_at_start"].status == "ok"


def test_a_base_in_eight_bits_is_allowed_its_rounding_and_no_more():
    rows = run(**{"sampling/logp_difference_mean": 0.017, "kl_per_token": lambda step: 0.017 + 0.01 * (step - 1)})
    assert by_check(rows)["sampling"].status == by_check(rows)["kl_at_start"].status == "warn"
    limits = Limits().for_eight_bits()
    assert by_check(rows, limits)["sampling"].status == by_check(rows, limits)["kl_at_start"].status == "ok"
    beyond = run(**{"sampling/logp_difference_mean": 0.3})
    assert by_check(beyond, limits)["sampling"].status == "warn"
    assert "quantised to 8 bits" in by_check(beyond, limits)["sampling"].message
    assert "llm_int8_threshold: 0.0" in by_check(beyond, limits)["sampling"].message
    assert "8 bits" not in by_check(beyond)["sampling"].message


def test_a_watch_speaks_once_and_remembers_what_recovered():
    watch = Watch()
    spoken = {}
    for row in run(30, approx_kl=lambda step: 0.5 if 10 <= step < 20 else 0.01):
        for finding in watch.observe(row):
            spoken.setdefault(finding.check, []).append(finding.step)
    assert list(spoken) == ["update_size"] and len(spoken["update_size"]) == 1
    (summary,) = [finding for finding in watch.summary() if finding.check == "update_size"]
    assert summary.status == "warn" and summary.step == spoken["update_size"][0]
    assert "It has been fine again since" in summary.message


def test_what_was_done_stays_and_a_rollback_begins_the_check_anew():
    watch = Watch()
    (finding,) = watch.observe({"step": 1, "loss": math.nan})
    assert watch.observe({"step": 2, "loss": math.nan}) == []
    watch.act(finding, "rollback")
    assert watch.summary()[0].status == "rollback"
    assert [again.step for again in watch.observe({"step": 3, "loss": math.nan})] == [3]


def test_figures_of_an_abandoned_stretch_are_forgotten():
    watch = Watch()
    for row in [*run(10), *(healthy(step, kl_per_token=9.0) for step in (11, 12, 13))]:
        watch.observe(row)
    assert watch.current["kl"].status == "warn"
    watch.rewind(10)
    watch.observe(healthy(14, kl_per_token=0.1))
    assert watch.current["kl"].status == "ok" and watch.history.points("kl_per_token")[-2][0] == 10


def test_checks_can_be_left_out():
    watch = Watch(off=["finite"])
    assert watch.observe({"step": 1, "loss": math.nan}) == [] and watch.summary() == []


def test_a_long_run_costs_no_more_per_row():
    def seconds(rows):
        watch = Watch()
        started = time.perf_counter()
        for row in rows:
            watch.observe(row)
        return (time.perf_counter() - started) / len(rows)

    rows = run(4000)
    first = min(seconds(rows[:400]) for _ in range(3))
    assert seconds(rows) < 5 * first


def test_booleans_and_words_are_no_figures():
    history = History([{"step": 1, "flag": True, "name": "x", "loss": 1.0}])
    assert history.keys() == ["step", "loss"] and "flag" not in history
