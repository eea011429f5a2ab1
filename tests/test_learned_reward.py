"""Rewards that train along, and what a run records about any reward."""

import functools

import pytest
import torch

from alignkit.errors import RewardCallError
from alignkit.reward import LearnedReward, describe_reward, learned_rewards, stateful_rewards


def words(completions, **columns):
    return [float(len(text.split())) for text in completions]


def politeness(prompts, completions, *, persona, **columns):
    return [0.0] * len(completions)


class Counter(LearnedReward):
    """Scores by how often it was updated."""

    def __init__(self):
        self.updates = 0

    def __call__(self, prompts, completions, reference=None, **columns):
        return [float(self.updates)] * len(completions)

    def update(self, prompts, completions, references):
        self.updates += 1
        return {"seen": float(len(completions))}

    def state_dict(self):
        return {"updates": self.updates}

    def load_state_dict(self, state):
        self.updates = state["updates"]


class Holder:
    """A composition as anybody may write one."""

    def __init__(self, *rewards):
        self.rewards = list(rewards)

    def __call__(self, completions, **columns):
        return [0.0] * len(completions)


def test_learned_rewards_are_found_inside_compositions_each_once():
    first, second = Counter(), Counter()
    nested = Holder(Holder(first), functools.partial(second), words)
    assert learned_rewards([nested, first, words]) == [first, second]
    assert list(stateful_rewards([nested])) == ["Counter", "Counter_2"]


def test_a_network_as_reward_is_no_state_of_the_checkpoint():
    assert stateful_rewards([torch.nn.Linear(1, 1)]) == {}


def test_what_was_scored_in_training_reaches_the_update_once():
    reward = Counter()
    reward(["p"], ["c"], reference=["r"])
    reward.eval()
    reward(["evaluation"], ["c"])
    reward.train()
    reward(["q"], ["d"], reference=["s"])
    assert reward.pending() == (["p", "q"], ["c", "d"], ["r", "s"])
    assert reward.pending() == ([], [], [])


def test_remembering_lists_of_different_length_is_refused():
    with pytest.raises(RewardCallError, match="one reference for each completion"):
        Counter().remember(["p"], ["c"], [])


# The record


def test_a_reward_is_described_by_code_version_and_settings():
    from alignkit_rewards import Length

    from alignkit.compose import WeightedSum

    described = describe_reward(WeightedSum([Length(target=3), words], weights=[1, 2]))
    assert described["target"] == "alignkit.compose:WeightedSum"
    assert described["distribution"] == "alignkit" and described["version"]
    assert described["settings"]["weights"] == [1.0, 2.0]
    length, own = described["parts"]
    assert length["distribution"] == "alignkit-rewards"
    assert length["settings"] == {"target": 3, "tolerance": 3.0, "unit": "words", "floor": -1.0}
    assert own["name"] == "words" and own["distribution"] is None


def test_a_partial_is_described_with_what_it_binds():
    described = describe_reward(functools.partial(politeness, persona="x"))
    assert described["settings"] == {"persona": "x"} and described["target"].endswith(":politeness")
