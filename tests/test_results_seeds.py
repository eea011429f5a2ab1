"""Tables over seeds: differences of runs with one seed, and what a column's key may say."""

import json
import math

import pytest

from tests.test_results_page import STUDY, add_result, docs, make_results

__all__ = ["docs"]  # the fixture


def test_runs_of_one_seed_are_compared_in_pairs(docs):
    study = docs / "results" / "sentiment" / "study.yaml"
    study.write_text(STUDY + "seed_differences: {to: ppo, columns: {reward: more reward, log kl: log KL}}\n")
    folder = docs / "results" / "sentiment" / "rloo"
    rewards, kls = [0.9, 0.5, 0.8], [2.0, 9.0, 3.0]
    for seed, reward, kl in zip((1, 2, 3), rewards, kls, strict=True):
        after = {"reward": reward, "kl": kl}
        (folder / f"seed-{seed}" / "results.json").write_text(json.dumps({"before": {"reward": 0.5}, "after": after}))
    assert make_results.main([], docs) == 0
    text = (docs / "results.md").read_text()
    cells = []
    for own, other in (
        (rewards, [0.91, 0.92, 0.93]),
        ([math.log(kl) for kl in kls], [math.log(kl) for kl in (5.0, 6.0, 7.0)]),
    ):
        gaps = [a - b for a, b in zip(own, other, strict=True)]
        mean = sum(gaps) / 3
        half = 4.30265273 * math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 2 / 3)  # t with 2 degrees of freedom
        cells.append(f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})")
    assert "Difference to ppo of the same seed" in text
    assert (
        f"| | seeds | more reward | log KL |\n| --- | ---: | ---: | ---: |\n| rloo | 3 | {' | '.join(cells)} |" in text
    )
    assert "| ppo | 3 | +" not in text


def test_seeds_that_the_other_has_not_are_left_out(docs):
    study = docs / "results" / "sentiment" / "study.yaml"
    study.write_text(STUDY + "seed_differences: {to: ppo, columns: {reward: more}}\n")
    rloo = docs / "results" / "sentiment" / "rloo"
    (rloo / "seed-3").rename(rloo / "seed-4")
    assert make_results.main([], docs) == 0
    assert "| rloo | 2 | -0.2000 (-0.2000 to -0.2000) |" in (docs / "results.md").read_text()
    (rloo / "seed-2").rename(rloo / "seed-5")
    assert make_results.main([], docs) == 0
    assert "| rloo | 1 | -0.2000 |" in (docs / "results.md").read_text()
    (rloo / "seed-1").rename(rloo / "seed-6")
    assert make_results.main([], docs) == 0
    assert "| rloo | 0 | – |" in (docs / "results.md").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{to: dpo, columns: {reward: r}}", "seed_differences to 'dpo'; the methods are ppo, rloo"),
        ("{to: ppo}", "seed_differences takes `to`, a method, and `columns`, key: title; got {'to': 'ppo'}"),
        ("{to: ppo, columns: [reward]}", "takes `to`, a method, and `columns`, key: title; got"),
        ("ppo", "seed_differences takes `to`, a method, and `columns`, key: title; got 'ppo'"),
    ],
)
def test_what_is_no_such_table_is_refused(docs, given, said):
    (docs / "results" / "sentiment" / "study.yaml").write_text(STUDY + f"seed_differences: {given}\n")
    with pytest.raises(SystemExit, match=said.replace("(", r"\(")):
        make_results.main([], docs)


def test_a_column_takes_the_first_figure_that_a_run_has_and_its_logarithm(docs):
    (docs / "results" / "sentiment" / "study.yaml").write_text(
        "{title: T, text: t, columns: {own|kl: own or KL, log own|reward: of that}}"
    )
    for seed in (1, 2, 3):
        file = docs / "results" / "sentiment" / "rloo" / f"seed-{seed}" / "results.json"
        found = json.loads(file.read_text())
        file.write_text(json.dumps({**found, "after": {**found["after"], "own": 2.5}}))
    assert make_results.main([], docs) == 0
    text = (docs / "results.md").read_text()
    assert f"| rloo | 3 | 2.50 ± 0.00 | {math.log(2.5):.3f} ± 0.000 |" in text
    assert "| ppo | 3 | 6.00 ± 1.00 | -0.0834 ± 0.0109 |" in text


def test_what_has_no_logarithm_is_named(docs):
    file = docs / "results" / "sentiment" / "rloo" / "seed-2" / "results.json"
    file.write_text(json.dumps({"before": {}, "after": {"reward": 0.5, "kl": -1.0}}))
    (docs / "results" / "sentiment" / "study.yaml").write_text("{title: T, text: t, columns: {log kl: log KL}}")
    with pytest.raises(SystemExit, match="'log kl' of seed 2 of rloo, which is -1: no logarithm"):
        make_results.main([], docs)


def test_curves_are_compared_at_one_place_in_pairs(tmp_path):
    environment = {
        "command": ["alignkit", "evaluate", "a"], "accelerators": [], "processor": "Some CPU", "threads": 1,
        "packages": {}, "data": {"train": {"rows": 9}, "validation": {"rows": 4}},
    }  # fmt: skip
    more = {"mle": {1: 0.0, 2: 0.02}, "gan": {1: 0.03, 2: 0.03}}
    for system, seeds in more.items():
        for seed, higher in seeds.items():
            places = [(0.5, 0.6), (1.0, 0.2)] if (system, seed) != ("gan", 2) else [(0.5, 0.6), (1.0, 0.4)]
            sweep = [{"temperature": t, "figures": {"self_bleu_4": x, "bleu_4": x + higher}} for t, x in places]
            found = {"figures": {"bleu_4": 0.4}, "environment": {**environment, "seed": seed}, "temperatures": sweep}
            (tmp_path / "judged.json").write_text(json.dumps(found))
            add_result.publish(tmp_path / "judged.json", "texts", system, tmp_path / "results")
    (tmp_path / "results" / "texts" / "study.yaml").write_text(
        "{title: T, text: t, columns: {bleu_4: B}, curves: {x: self_bleu_4, y: bleu_4}, order: [mle, gan],"
        " seed_differences: {to: mle, columns: {curve 0.5: at 0.5, curve 0.3: at 0.3, curve 0.1: at 0.1}}}"
    )
    assert make_results.main([], tmp_path) == 0
    text = (tmp_path / "results.md").read_text()
    half = 12.70620474 * math.sqrt(2 * 0.01**2 / 2)  # t with one degree of freedom
    assert f"| gan | 2 | +0.0200 ({0.02 - half:+.4f} to {0.02 + half:+.4f}) | +0.0300 [1] | – |" in text
