"""The cooperative trainer with rewards in the plural: who is taught, who has no opinion, and what guides a search."""

import math

import pytest
import torch
from accelerate import Accelerator
from test_cooperative import Events, examples, trainer, vowels

from alignkit.errors import RewardError
from alignkit.reward import PrefixReward


@pytest.mark.parametrize("index, expected", [(0, 2), (1, 0)])
def test_a_process_without_a_row_of_its_own_teaches_nothing(index, expected, tmp_path, monkeypatch):
    """A prompt's eight completions lie in two processes, and the reward learns from the first two."""
    reward = Events()
    run = trainer(tmp_path, reward=reward, num_generations=8, discriminator_samples=2)
    taught = []
    monkeypatch.setattr(Accelerator, "process_index", property(lambda self: index))
    monkeypatch.setattr(run.reward_states, "update_now", lambda *given: taught.append(reward.pending()))
    run.sample(examples(run, prompts=1)[:4])
    assert [len(part) for part in taught[0]] == [expected] * 3


def opinions(values):
    def given(prompts, completions, **columns):
        return [values[i % len(values)] for i in range(len(completions))]

    return given


def log_scores(tmp_path, rewards, **settings):
    run = trainer(tmp_path, reward=rewards, **settings)
    return run.log_scores(run.score(run.sample(examples(run))))


def test_no_opinion_is_not_the_best_of_opinions(tmp_path):
    first, second = opinions([0.9, None, 0.2, 0.4]), opinions([0.5])
    for weights, power in (([1.0, 1.0], 1), ([1.0, 0.0], 0)):
        found = log_scores(tmp_path, [first, second], reward_weights=weights).view(2, 4)
        assert found.isnan().tolist() == [[False, True, False, False]] * 2
        expected = torch.tensor([0.9, 0.2, 0.4]).log() + power * math.log(0.5)
        torch.testing.assert_close(found[0, [0, 2, 3]], expected)
    added = log_scores(tmp_path, [first, second], reward_as="exponential").view(2, 4)
    assert added.isnan().tolist() == [[False, True, False, False]] * 2


def test_a_reward_without_an_opinion_on_the_whole_prompt_leaves_it_to_the_others(tmp_path):
    other = opinions([0.9, 0.8, 0.2, 0.4])
    of_half = opinions([None] * 4 + [0.5, 0.5, 0.5, 0.25])
    found = log_scores(tmp_path, [other, of_half]).view(2, 4)
    scores = torch.tensor([0.9, 0.8, 0.2, 0.4]).log()
    torch.testing.assert_close(found[0], scores)
    torch.testing.assert_close(found[1], scores + torch.tensor([0.5, 0.5, 0.5, 0.25]).log())
    alone = log_scores(tmp_path, [of_half, other], reward_weights=[1.0, 0.0]).view(2, 4)
    assert alone[0].isnan().all() and not alone[1].isnan().any()


def third(prompts, completions, **columns):
    return [1 / 3] * len(completions)


def minus(prompts, completions, **columns):
    return [-float(len(text)) for text in completions]


def test_a_search_is_guided_by_what_the_weights_ask_for(tmp_path):
    asked = (["it"], ["an ode"])
    run = trainer(tmp_path, reward=[vowels, third], reward_weights=[2.0, 1.0], proposal="das")
    guide = run.decoder.search
    assert guide.reward(*asked)[0] == pytest.approx(vowels(*asked)[0] ** 2 / 3) and guide.reward_as == "probability"
    alone = trainer(tmp_path, reward=vowels, reward_weights=[2.0], proposal="das").decoder.search
    assert alone.reward(*asked)[0] == pytest.approx(vowels(*asked)[0] ** 2)
    settings = {"reward_as": "exponential", "reward_temperature": 4.0, "proposal": "das", "max_steps": 1}
    run = trainer(tmp_path, reward=[minus, third], reward_weights=[1.0, 3.0], **settings)
    guide = run.decoder.search
    assert guide.reward(*asked) == pytest.approx([-5.0])
    assert (guide.reward_as, guide.alpha) == ("exponential", 0.25)
    run.train()
    own = trainer(tmp_path, reward=minus, proposal_settings={"alpha": 2.0}, **settings)
    assert own.decoder.search.alpha == 2.0
    with pytest.raises(RewardError, match=r"weighted_product multiplies probabilities from 0 to 1.* gave -6"):
        trainer(tmp_path, reward=[minus, third], proposal="mcts", max_steps=1).decoder.search.reward(*asked)


@pytest.mark.parametrize(
    "settings",
    [
        {"proposal": "mcts", "proposal_settings": {"visit_temperature": 0, "policy_share": 0, "simulations": 6}},
        {"proposal": "das", "proposal_settings": {"sample": False, "policy_share": 0, "candidates": 4}},
    ],
    ids=["mcts", "das"],
)
def test_selfgan_learns_the_most_visited_text_itself(settings, tmp_path):
    """Without weights no density is needed: the search may take the best token, as the paper's does."""
    run = trainer(tmp_path, weighting="uniform", num_generations=1, max_steps=2, **settings)
    rollout = run.sample(examples(run, prompts=2))
    assert rollout.made.log_density is None
    run.train()
    assert run.state.log_history[0]["grad_norm"] > 0


def test_the_parts_of_a_guide_read_token_by_token_where_they_can(tmp_path):
    class Reads:
        __name__ = "reads"

        def __init__(self):
            self.begun = 0

        def __call__(self, prompts, completions, **columns):
            return [0.5] * len(completions)

        def begin(self, prompts, processing_class, columns):
            self.begun += 1

    reward = Reads()
    assert isinstance(reward, PrefixReward)
    run = trainer(tmp_path, reward=[reward, vowels], proposal="mcts", proposal_settings={"simulations": 3})
    run.sample(examples(run))
    assert reward.begun == 1
