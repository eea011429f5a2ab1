"""Functions with the call signatures of OpenRLHF, verl and trlX work unchanged."""

import asyncio
import functools

import pytest
import torch

from alignkit.errors import MissingColumnError, RewardCallError, RewardError, RewardValueError
from alignkit.foreign import from_openrlhf, from_trlx, from_verl
from alignkit.registry import load_reward
from alignkit.reward import call_reward, check_columns
from alignkit.testing import check_reward

PROMPTS, COMPLETIONS = ["1 + 1 = ", "2 + 2 = "], ["2", "5"]
CHAT_PROMPTS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
CHAT_COMPLETIONS = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]


def reward_func(queries, prompts, labels):
    """As in OpenRLHF: cuts the prompt off the query."""
    answers = [query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
    correct = torch.tensor([float(a == label) for a, label in zip(answers, labels, strict=True)])
    return {"rewards": correct, "scores": correct, "extra_logs": {"accuracy": correct, "half": 0.5}}


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """As in verl: one answer at a time."""
    return {"score": float(solution_str == ground_truth), "chars": len(solution_str), "pred": solution_str}


async def compute_score_async(data_source, solution_str, ground_truth, extra_info=None):
    await asyncio.sleep(0)
    return float(solution_str == ground_truth)


def compute_scores(data_sources, solution_strs, ground_truths, extra_infos):
    return [float(s == g) for s, g in zip(solution_strs, ground_truths, strict=True)]


def reward_fn(samples, prompts, outputs, **metadata):
    """As in trlX."""
    assert all(sample == prompt + output for sample, prompt, output in zip(samples, prompts, outputs, strict=True))
    return [float(o == a) for o, a in zip(outputs, metadata["answer"], strict=True)]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("reward", "column"),
    [
        (from_openrlhf(reward_func, label="answer"), "answer"),
        (from_verl(compute_score), "ground_truth"),
        (from_verl(compute_score_async), "ground_truth"),
        (from_verl(compute_scores, batched=True), "ground_truth"),
        (from_trlx(reward_fn), "answer"),
    ],
)
def test_a_foreign_function_scores_plain_text_and_conversations(reward, column, chat):
    prompts, completions = (CHAT_PROMPTS, CHAT_COMPLETIONS) if chat else (PROMPTS, COMPLETIONS)
    assert call_reward(reward, prompts, completions, columns={column: ["2", "4"]}) == [1.0, 0.0]


def test_openrlhf_labels_are_a_required_column_or_empty():
    with pytest.raises(MissingColumnError, match="'reward_func' needs column 'answer'"):
        check_columns([from_openrlhf(reward_func, label="answer")], ["prompt"])
    seen = []
    call_reward(from_openrlhf(lambda q, p, labels: seen.extend(labels) or [0.0, 0.0]), PROMPTS, COMPLETIONS)
    assert seen == ["", ""]


def test_extra_figures_are_logged_as_means():
    logged = {}
    log = {"log_metric": logged.__setitem__}
    call_reward(from_openrlhf(reward_func, label="a"), PROMPTS, COMPLETIONS, columns={"a": ["2", "4"]}, **log)
    call_reward(from_verl(compute_score), PROMPTS, COMPLETIONS, columns={"ground_truth": ["2", "4"]}, **log)
    assert logged == {"reward_func/accuracy": 0.5, "reward_func/half": 0.5, "compute_score/chars": 1.0}


def test_verl_gets_its_columns_and_opens_its_reward_model_column():
    seen = []

    def score(data_source, solution_str, ground_truth, extra_info=None):
        seen.append((data_source, ground_truth, extra_info))
        return (1.0, "why")

    columns = {
        "reward_model": [{"style": "rule", "ground_truth": "2"}] * 2,
        "data_source": ["gsm8k", "math"],
        "extra_info": [{"index": 0}, {"index": 1}],
    }
    reward = from_verl(score, ground_truth="reward_model")
    assert call_reward(reward, PROMPTS, COMPLETIONS, columns=columns) == [1.0, 1.0]
    assert seen == [("gsm8k", "2", {"index": 0}), ("math", "2", {"index": 1})]


def test_trlx_scores_per_token_pass_where_they_are_announced():
    def dense(samples, prompts, outputs, tokenizer):
        return [torch.ones(tokenizer) for _ in outputs]

    reward = from_trlx(dense, tokenizer=3, granularity="token")
    ids = [[1, 2, 3], [4, 5, 6]]
    assert call_reward(reward, PROMPTS, COMPLETIONS, completion_ids=ids) == [[1.0] * 3] * 2
    with pytest.raises(RewardValueError, match="granularity 'completion'"):
        call_reward(from_trlx(dense, tokenizer=3), PROMPTS, COMPLETIONS)


def test_trlx_metadata_without_default_is_a_required_column():
    def score(samples, prompts, outputs, persona, style="plain"):
        return [float(p in o) for p, o in zip(persona, outputs, strict=True)]

    with pytest.raises(MissingColumnError, match="persona"):
        check_columns([from_trlx(score)], ["prompt"])
    assert call_reward(from_trlx(score), PROMPTS, COMPLETIONS, columns={"persona": ["2", "x"], "z": [0, 0]}) == [1, 0]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (from_openrlhf(lambda q, p, labels: {"scores": [1.0]}), "under 'rewards'"),
        (from_verl(lambda **k: {"reward": 1.0}), "under 'score'"),
        (from_verl(lambda **k: float("nan")), "returned nan"),
    ],
)
def test_answers_in_another_form_are_refused(reward, words):
    with pytest.raises(RewardValueError, match=words):
        call_reward(reward, PROMPTS, COMPLETIONS, columns={"ground_truth": ["", ""]})


def test_a_foreign_function_that_raises_never_scores_zero():
    def score(data_source, solution_str, ground_truth, extra_info=None):
        return 1 / int(solution_str == "2")

    with pytest.raises(RewardCallError, match=r"'score' raised ZeroDivisionError(.|\n)*sample 2 of 2"):
        call_reward(from_verl(score), PROMPTS, COMPLETIONS, columns={"ground_truth": ["", ""]})


def test_wrappers_keep_the_contract_and_the_name():
    check_reward(from_verl(compute_score, name="exact"), columns={"ground_truth": ["2"]})
    check_reward(from_openrlhf(reward_func, label="answer"), columns={"answer": ["2"]})
    assert from_verl(functools.partial(compute_score, extra_info=None)).__name__ == "compute_score"
    assert from_verl(compute_score, name="exact").__name__ == "exact"


def test_something_that_is_no_function_is_refused():
    with pytest.raises(RewardError, match="expected a function"):
        from_verl(3)


def test_a_recipe_names_the_function_in_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 7"
    )
    reward = load_reward("alignkit.foreign:VerlReward", func=f"{tmp_path}/mine.py:compute_score", name="seven")
    assert call_reward(reward, ["p"], ["c"], columns={"ground_truth": ["x"]}) == [7.0]
