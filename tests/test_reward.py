"""The contract: which columns, which name, what is passed, and what is refused with which words."""

import asyncio
import functools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.errors import MissingColumnError, RewardCallError, RewardError, RewardValueError
from alignkit.reward import (
    Reward,
    call_reward,
    check_columns,
    granularity,
    required_columns,
    reward_name,
    unique_names,
)

PROMPTS, COMPLETIONS = ["Hello", "Bye"], ["good day", ""]


def words(completions, **columns):
    return [float(len(text.split())) for text in completions]


def politeness(prompts, completions, *, persona, **columns):
    return [float(p in text) for p, text in zip(persona, completions, strict=True)]


class Named:
    __name__ = "kindness"

    def __call__(self, completions, **columns):
        return [1.0] * len(completions)


class Unnamed:
    def __call__(self, completions, **columns):
        return [1.0] * len(completions)


def answering(answer, unit=None):
    def reward(completions, **columns):
        return answer

    if unit:
        reward.granularity = unit
    return reward


# Names


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (words, "words"),
        (Named(), "kindness"),
        (Unnamed(), "Unnamed"),
        (functools.partial(functools.partial(words), a=1), "words"),
        (functools.partial(Named()), "kindness"),
        (lambda completions: [], "lambda"),
    ],
)
def test_the_name_is_what_trl_logs_where_trl_has_one(reward, name):
    from trl.trainer.utils import get_callable_name

    assert reward_name(reward) == name
    assert get_callable_name(reward).strip("<>") == name


def test_names_repeat_with_a_number_and_never_collide():
    second = functools.partial(words)
    taken = type("Taken", (Named,), {"__name__": "words_2"})()
    assert unique_names([words, second, words]) == ["words", "words_2", "words_3"]
    assert unique_names([words, words, taken]) == ["words", "words_3", "words_2"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "a_2", "a_2_2", "b"]), max_size=8))
def test_log_names_are_unique_whatever_the_rewards_are_called(names):
    rewards = [type("R", (Named,), {"__name__": name})() for name in names]
    found = unique_names(rewards)
    assert len(set(found)) == len(names)
    assert all(new.startswith(old) for new, old in zip(found, names, strict=True))


# Columns


def test_a_keyword_without_default_is_a_required_column():
    def reward(prompts, completions, completion_ids, trainer_state, persona, *, label, style="plain", **columns): ...

    assert required_columns(reward) == ["persona", "label"]


def test_a_partial_supplies_the_column_that_it_binds():
    assert required_columns(functools.partial(politeness, persona="a")) == []


def test_an_attribute_may_name_columns_that_the_signature_hides():
    reward = Unnamed()
    reward.required_columns = ["reference"]
    assert required_columns(reward) == ["reference"]


def test_missing_columns_are_named_with_the_reward_and_what_there_is():
    with pytest.raises(MissingColumnError) as caught:
        check_columns([politeness], ["prompt", "reference"])
    assert str(caught.value) == "reward 'politeness' needs column 'persona'; the data has: prompt, reference"


def test_all_missing_columns_of_all_rewards_come_in_one_message():
    def other(completions, label, **columns): ...

    with pytest.raises(MissingColumnError) as caught:
        check_columns([politeness, other], ["prompt", "lable"])
    message = str(caught.value)
    assert "'persona'" in message and "'label'" in message and "Did you mean 'lable'?" in message


def test_a_reward_that_asks_for_the_prompt_in_the_singular_is_told_the_plural():
    def reward(prompt, completions, **columns): ...

    with pytest.raises(MissingColumnError, match="name it prompts"):
        check_columns([reward], ["prompt"])


def test_positional_only_arguments_are_refused():
    def reward(completions, /, **columns): ...

    with pytest.raises(RewardError, match="by position only"):
        required_columns(reward)


def test_something_that_cannot_be_called_is_no_reward():
    with pytest.raises(RewardError, match="a reward is a callable"):
        required_columns(3)
    assert not isinstance(3, Reward)


# What is passed


def test_a_reward_with_columns_gets_everything_as_trl_gives_it():
    seen = {}

    def reward(prompts, completions, **columns):
        seen.update(columns)
        columns["log_metric"]("share", 0.5)
        columns["log_extra"]("text", ["a", "b"])
        return [0.0, 0.0]

    call_reward(reward, PROMPTS, COMPLETIONS, columns={"persona": ["x", "y"]}, completion_ids=[[1], []])
    assert seen["persona"] == ["x", "y"] and seen["completion_ids"] == [[1], []] and seen["trainer_state"] is None


def test_a_reward_without_star_star_gets_only_what_it_names():
    def reward(completions, persona):
        return [float(len(text) + len(p)) for text, p in zip(completions, persona, strict=True)]

    scores = call_reward(reward, PROMPTS, COMPLETIONS, columns={"persona": ["x", "yy"], "other": [1, 2]})
    assert scores == [9.0, 2.0]


def test_logging_reaches_the_trainer():
    logged = []

    def reward(completions, log_metric, **columns):
        log_metric("share", 0.5)
        return [0.0] * len(completions)

    call_reward(reward, PROMPTS, COMPLETIONS, log_metric=lambda name, value: logged.append((name, value)))
    assert logged == [("share", 0.5)]


def test_token_ids_that_do_not_exist_are_missed_in_words():
    def reward(completion_ids, **columns):
        return [len(ids) for ids in completion_ids]

    with pytest.raises(RewardCallError, match="needs completion_ids"):
        call_reward(reward, PROMPTS, COMPLETIONS)
    assert call_reward(reward, PROMPTS, COMPLETIONS, completion_ids=[[1, 2], []]) == [2.0, 0.0]


def test_columns_of_another_length_are_refused():
    with pytest.raises(RewardCallError, match="persona"):
        call_reward(politeness, PROMPTS, COMPLETIONS, columns={"persona": ["x"]})


async def slow(completions, **columns):
    await asyncio.sleep(0)
    return [1.0] * len(completions)


def test_an_async_reward_is_awaited_also_where_a_loop_runs():
    assert call_reward(slow, PROMPTS, COMPLETIONS) == [1.0, 1.0]

    async def notebook():
        return call_reward(slow, PROMPTS, COMPLETIONS)

    assert asyncio.run(notebook()) == [1.0, 1.0]


# What comes back


@pytest.mark.parametrize(
    "answer",
    [
        [1, None],
        (True, None),
        [np.float32(1), None],
        [torch.tensor(1.0), None],
        iter([1.0, None]),
    ],
)
def test_numbers_of_every_kind_become_floats_and_none_stays_none(answer):
    scores = call_reward(answering(answer), PROMPTS, COMPLETIONS)
    assert scores == [1.0, None] and type(scores[0]) is float


@pytest.mark.parametrize("answer", [np.array([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.bfloat16)])
def test_arrays_and_tensors_are_answers(answer):
    assert call_reward(answering(answer), PROMPTS, COMPLETIONS) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([1.0], "returned a list of 1 for 2 completions"),
        ([1.0, 2.0, 3.0], "returned a list of 3 for 2 completions"),
        ([1.0, math.inf], "returned inf"),
        ([math.nan, 1.0], "returned nan"),
        ([10**400, 1.0], "returned inf"),
        (["good", 1.0], "returned 'good'"),
        (1.0, "expected a list of 2 numbers"),
        (None, "expected a list of 2 numbers"),
        ({"score": [1.0, 1.0]}, "expected a list of 2 numbers"),
        ("ab", "expected a list of 2 numbers"),
        (torch.ones(2, 1), "granularity 'completion' returns a number"),
    ],
)
def test_wrong_answers_are_refused_with_the_name(answer, words):
    with pytest.raises(RewardValueError) as caught:
        call_reward(answering(answer), PROMPTS, COMPLETIONS, name="judge")
    assert words in str(caught.value) and "'judge'" in str(caught.value)


def test_a_value_that_is_not_finite_is_shown_with_its_sample():
    with pytest.raises(RewardValueError) as caught:
        call_reward(answering([0.0, -math.inf]), PROMPTS, ["good day", "so\nlong"])
    message = str(caught.value)
    assert "returned -inf" in message and "sample 2 of 2" in message and "'Bye'" in message and "'so long'" in message


def test_a_reward_that_raises_is_shown_with_the_sample_that_makes_it_raise():
    def inverse(completions, **columns):
        return [1 / len(text) for text in completions]

    with pytest.raises(RewardCallError) as caught:
        call_reward(inverse, PROMPTS, COMPLETIONS)
    message = str(caught.value)
    assert "reward 'inverse' raised ZeroDivisionError" in message and "sample 2 of 2" in message
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reward_that_fails_on_the_batch_only_is_reported_without_a_sample():
    def pairs(completions, **columns):
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [0.0]

    with pytest.raises(RewardCallError, match=r"too many \(on a batch of 2\)"):
        call_reward(pairs, PROMPTS, COMPLETIONS)


def test_looking_for_the_sample_ends_after_a_while(monkeypatch):
    monkeypatch.setattr("alignkit.reward.call.SEARCH_SECONDS", 0.05)
    calls = []

    def slow_batch(completions, **columns):
        calls.append(len(completions))
        if len(completions) > 1:
            raise RuntimeError("down")
        time.sleep(0.04)
        return [0.0]

    with pytest.raises(RewardCallError):
        call_reward(slow_batch, ["p"] * 50, ["c"] * 50)
    assert 2 <= len(calls) <= 4


def test_an_error_inside_a_reward_of_ours_passes_through_unwrapped():
    def reward(completions, **columns):
        raise RewardError("no such lexicon")

    with pytest.raises(RewardError, match=r"^no such lexicon$"):
        call_reward(reward, PROMPTS, COMPLETIONS)


# Per turn and per token


def test_scores_per_token_are_held_against_the_tokens():
    reward = answering([torch.tensor([0.5, 1.0]), None], "token")
    assert call_reward(reward, PROMPTS, COMPLETIONS, completion_ids=[[5, 6], []]) == [[0.5, 1.0], None]
    with pytest.raises(RewardValueError, match="2 per-token scores for a completion of 3 tokens"):
        call_reward(reward, PROMPTS, COMPLETIONS, completion_ids=[[5, 6, 7], []])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([[1.0, math.inf], None], r"inf.*token 1"),
        ([1.0, None], "returns a list of numbers"),
        ([["a"], None], "token 0"),
    ],
)
def test_wrong_scores_per_token_are_refused(answer, words):
    with pytest.raises(RewardValueError, match=words):
        call_reward(answering(answer, "token"), PROMPTS, COMPLETIONS)


def test_turns_may_differ_in_number():
    assert call_reward(answering([[1, 2, 3], [4]], "turn"), PROMPTS, COMPLETIONS) == [[1.0, 2.0, 3.0], [4.0]]


def test_an_unknown_granularity_is_refused():
    with pytest.raises(RewardError, match="expected one of completion, turn, token"):
        granularity(answering([], "sentence"))
