"""The win rate over references: by hand, by enumeration of a discriminator's gain, and its way through a recipe."""

import json
import math
import statistics
from typing import ClassVar

import pytest

from alignkit.comparison import compare_rows
from alignkit.errors import ConfigError, MissingColumnError, RecipeError
from alignkit.evaluation import evaluate_rows
from alignkit.json_lines import read_json_lines
from alignkit.metrics import load_metric
from alignkit.metrics.win_rate import WinRateMetric
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.run.evaluate import evaluate_run


def length(prompts, completions, **columns):
    return [None if "?" in text else float(len(text.split())) for text in completions]


def found(predictions, references, reward=length, **given):
    one = WinRateMetric(reward)
    return one.compute(predictions=predictions, columns={"reference": references}, **given), one.row_scores["win_rate"]


def test_wins_ties_and_what_the_reward_has_no_opinion_on():
    texts = ["a b c", "a", "a b", "a ?", "a b", "a b"]
    references = ["a b", "a b", "c d", "a", None, "so ?"]
    figures, rows = found(texts, references)
    assert rows == [1.0, 0.0, 0.5, None, None, None]
    assert figures == {"win_rate": 0.5, "win_rate_margin": 0.0}


def test_of_several_references_the_mean_counts():
    figures, rows = found(["a b", "a b c d"], [["a", "a b", "a b c", "?"], ["a b"]])
    assert rows == [0.5, 1.0] and figures["win_rate_margin"] == 1.0


def test_nobody_wins_where_nothing_is_known():
    figures, rows = found(["?"], ["a"])
    assert rows == [None] and all(math.isnan(figure) for figure in figures.values())
    for columns in ({}, {"reference": [None]}):
        with pytest.raises(MissingColumnError, match="'win_rate' needs a column 'reference'"):
            WinRateMetric(length).compute(predictions=["a"], columns=columns)


def test_a_reference_has_the_form_and_the_columns_of_its_completion():
    seen = []

    def reading(prompts, completions, topic, **columns):
        seen.extend(zip(prompts, completions, topic, strict=True))
        return [0.0] * len(completions)

    said = [{"role": "assistant", "content": "fine"}]
    prompts = [[{"role": "user", "content": "and you?"}]]
    WinRateMetric(reading).compute(
        predictions=["fine"], completions=[said], prompts=prompts, columns={"reference": ["well"], "topic": ["mood"]}
    )
    assert seen == [(prompts[0], said, "mood"), (prompts[0], [{"role": "assistant", "content": "well"}], "mood")]


class Table:
    """A discriminator of four texts that is optimal against uniform samples of them: D = p_d / (p_d + p)."""

    __name__ = "table"
    people: ClassVar = {"a": 0.5, "b": 0.25, "c": 0.25, "d": 0.0}

    def __call__(self, prompts, completions, **columns):
        return [self.people[text] / (self.people[text] + 0.25) for text in completions]

    def log_scores(self, prompts, completions, **columns):
        # of the text that nobody writes, a score too small for single precision
        scores = self(prompts, completions)
        return [math.log(score) if score else -1000.0 for score in scores]


def test_the_gain_is_what_the_target_adds_to_the_likelihood_of_peoples_texts():
    table = Table()
    # each text as often as people and the policy write it
    figures, _ = found(list("abcd"), list("aabc"), table)
    target = {text: 0.25 * table.people[text] / (table.people[text] + 0.25) for text in table.people}
    z = sum(target.values())
    expected = sum(chance * math.log(target[text] / z / 0.25) for text, chance in table.people.items() if chance)
    assert figures["win_rate_gain"] == pytest.approx(expected)
    # a reference that the score of 0 would make impossible has the logarithm that the discriminator knows
    assert found(["a"], ["d"], table)[0]["win_rate_gain"] == pytest.approx(-1000 - math.log(2 / 3))
    assert "win_rate_gain" not in found(["a"], ["a b"])[0]


def test_it_is_a_judge_unless_the_run_is_trained_on_that_reward():
    def rows(texts):
        fields = {"reference": "a b", "columns": {}, "rewards": {"warm": 0.0}, "reward": 0.0, "kl": 0.0, "length": 1}
        return [{"prompt": f"p{i}", "completion": text, **fields} for i, text in enumerate(texts)]

    before, after = rows(["a"] * 8), rows(["a b c"] * 8)
    for one in (before, after):
        own = WinRateMetric(length, name="own")
        own.per_row = False
        assert set(evaluate_rows(one, {"win_rate": WinRateMetric(length), "own": own})) >= {"win_rate", "own"}
    figures = compare_rows({"before": before, "after": after}).figures
    assert figures["win_rate"]["after"].difference == 1.0 and "own" not in figures


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_causal_lm().save_pretrained("policy")
    tiny_tokenizer().save_pretrained("policy")
    cnn = {"kind": "cnn", "scratch": {"context": 16}, "tokenizer": "policy", "of": "completion"}
    content = {
        "trainer": "cooperative",
        "model": "policy",
        "data": {"use": "quickstart", "train_size": 16, "validation_size": 6},
        "rewards": {"discriminator": cnn},
        "training": {
            "output_dir": "run", "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4,
            "max_completion_length": 4, "learning_rate": 1e-2, "save_strategy": "no", "use_cpu": True,
            "eval_strategy": "steps", "eval_steps": 1,
        },
        "evaluation": {"metrics": {
            "win_rate": {"reward": "discriminator"},
            "longer": {"use": "win_rate", "reward": {"use": "length", "target": 3}},
        }},
    }  # fmt: skip
    return content


def written(content):
    with open("recipe.yaml", "w") as file:
        json.dump(content, file)
    return load_recipe("recipe.yaml")


def test_a_recipe_asks_its_own_discriminator_as_it_stands_and_evaluate_as_it_ended(study):
    folder = run_recipe(written(study))
    logged = [row for row in read_json_lines(folder / "metrics.jsonl") if "eval_win_rate_gain" in row]
    # it learned between the evaluations
    assert len({row["eval_win_rate_gain"] for row in logged}) > 1
    after = json.loads((folder / "results.json").read_text())["after"]
    rows = [row for row in read_json_lines(folder / "samples.jsonl") if row["phase"] == "after"]
    assert after["longer"] == pytest.approx(statistics.fmean(row["metrics"]["longer"] for row in rows))
    assert all("win_rate" not in row["metrics"] for row in rows)
    again = evaluate_run(folder)
    assert again["win_rate_gain"] == pytest.approx(after["win_rate_gain"], rel=1e-5)
    assert again["win_rate"] == after["win_rate"]


def test_a_discriminator_that_nobody_would_train_is_refused(study):
    copied = {"use": "discriminator", **study["rewards"]["discriminator"]}
    study["evaluation"]["metrics"] = {"win_rate": {"reward": copied}}
    with pytest.raises(ConfigError, match=r"evaluation\.win_rate\.reward: discriminator learns.*\(discriminator\)"):
        run_recipe(written(study))
    study["evaluation"]["metrics"] = {"win_rate": {"reward": "discriminatr"}, "b": {"use": "win_rate"}}
    with pytest.raises(RecipeError) as raised:
        written(study)
    said = "\n".join(raised.value.problems)
    assert "'discriminatr'" in said and "needs the setting 'reward'" in said


def test_it_is_loaded_by_name_and_by_mapping():
    assert load_metric("win_rate", reward="repetition").reward.__name__ == "repetition"
    assert load_metric("win_rate", reward={"use": "length", "target": 3}).reward.target == 3
