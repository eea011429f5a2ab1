"""The cooperative trainer with rewards in the plural: who is taught, who has no opinion, and what guides a search."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from test_cooperative import Events, examples, trainer, vowels

from alignkit.compose import WeightedProduct
from alignkit.decoding.best_of_n import BestOfN
from alignkit.decoding.mcts import MCTS
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import ConfigError, RewardError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.reward import PrefixReward


@pytest.mark.parametrize("index, expected", [(0, 2), (1, 0)])
def test_a_process_without_a_row_of_its_own_teaches_nothing(index, expected, tmp_path, monkeypatch):
    """A prompt's eight completions lie in two processes, and the reward learns from the first two."""
    reward = Events()
    run = trainer(tmp_path, reward=reward, num_generations=8, discriminator_samples=2)
    taught = []
    run._references = None  # they are drawn for all processes, and here is but one
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


def test_odds_are_those_of_the_scores_and_multiply(tmp_path):
    values, others = [0.9, None, 0.2, 0.5], [0.5, 0.25, 0.75, 0.5]
    found = log_scores(tmp_path, [opinions(values), opinions(others)], reward_as="odds", reward_weights=[1.0, 2.0])
    expected = torch.tensor([9 * 1.0, 0.25 * 9, 1.0]).log()
    torch.testing.assert_close(found.view(2, 4)[0, [0, 2, 3]], expected)
    assert found.view(2, 4)[:, 1].isnan().all()


class Sure:
    """Gives scores that single precision takes for 0 and 1, and knows their logarithms where it is asked for them."""

    odds = (-200.0, 40.0, 200.0, 0.0)

    def __call__(self, prompts, completions, **columns):
        return [1 / (1 + math.exp(-self.odds[i % 4])) for i in range(len(completions))]


class SureAndExact(Sure):
    def __init__(self, said=None):
        self.said = said

    def log_scores(self, prompts, completions, **columns):
        self.asked = len(completions)
        # the rows that are asked for are the first three of each prompt's four
        odds = [self.odds[i % 3] for i in range(len(completions))]
        exact = [-math.log1p(math.exp(-o)) if o < 0 else -math.exp(-o) for o in odds]
        return exact if self.said is None else [self.said[0]] * len(exact)


def test_odds_of_sure_scores_are_exact_or_refused(tmp_path):
    reward = SureAndExact()
    found = log_scores(tmp_path, reward, reward_as="odds").view(2, 4)
    assert reward.asked == 6
    torch.testing.assert_close(found, torch.tensor(reward.odds, dtype=found.dtype).expand(2, 4), rtol=1e-6, atol=1e-4)
    with pytest.raises(RewardError, match=r"gave 1 to .* no odds .*log_scores.*reward_as='probability'"):
        log_scores(tmp_path, Sure(), reward_as="odds")
    with pytest.raises(RewardError, match=r"gave -2 to .*reward_as='odds' takes numbers from 0 to 1"):
        log_scores(tmp_path, opinions([-2.0]), reward_as="odds")


def test_a_reward_that_is_only_watched_may_be_sure(tmp_path):
    found = log_scores(tmp_path, [opinions([0.5]), opinions([1.0])], reward_as="odds", reward_weights=[1.0, 0.0])
    assert found.tolist() == [0.0] * 8


@pytest.mark.parametrize("reward_as", ["probability", "odds"])
@pytest.mark.parametrize("said", [None, math.nan, 1e-9, math.inf, -0.1, "-800"])
def test_what_is_no_logarithm_of_a_score_is_refused(said, reward_as, tmp_path):
    with pytest.raises(RewardError, match=r"log_scores gave .* expected the score's logarithm"):
        log_scores(tmp_path, SureAndExact([said]), reward_as=reward_as)


@pytest.mark.parametrize(("said", "given"), [([-800.0], "a list of 1"), (None, "nothing"), ("abc", "the text 'abc'")])
def test_what_is_no_list_of_logarithms_is_refused_by_the_rewards_name(said, given, tmp_path):
    reward = SureAndExact()
    reward.log_scores = lambda prompts, completions, **columns: said
    with pytest.raises(
        RewardError, match=f"'SureAndExact': log_scores gave {given} for 2 completions; expected a list"
    ):
        log_scores(tmp_path, reward)


@pytest.mark.parametrize("weighting, more", [("reward", {}), ("uniform", {"proposal": "das"})])
def test_odds_without_weights_are_refused(weighting, more, tmp_path):
    with pytest.raises(ConfigError, match="no log-weights for the odds"):
        trainer(tmp_path, reward_as="odds", weighting=weighting, **more)


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


@pytest.mark.parametrize("proposal", ["mcts", "das"])
def test_a_guide_knows_the_weight_of_a_single_reward(proposal, tmp_path):
    guide = trainer(
        tmp_path, reward=minus, reward_weights=[-2.0], reward_as="exponential", proposal=proposal
    ).decoder.search
    assert guide.reward(["it"], ["an ode"]) == [12.0]


def test_a_reward_that_is_only_watched_guides_nothing_and_may_be_any_number(tmp_path):
    asked = (["it"], ["an ode"])
    weights = {"reward_weights": [1.0, 0.0]}
    run = trainer(tmp_path, reward=[vowels, minus], proposal="das", max_steps=1, **weights)
    assert run.decoder.search.reward(*asked) == pytest.approx(vowels(*asked))
    run.train()
    found = log_scores(tmp_path, [vowels, minus], **weights)
    assert bool((found < 0).all()) and bool(found.isfinite().all())
    product = WeightedProduct([opinions([None, 0.5]), minus], weights=[1.0, 0.0])
    assert product(["it"] * 2, ["an ode"] * 2) == [None, 0.5]


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


def test_a_prompt_whose_rewards_know_different_completions_does_not_count(tmp_path):
    """Of the first prompt one reward knows two completions and the other one the other two; of the second both all."""
    ones = opinions([0.9, 0.8, None, None, 0.5, 0.5, 0.25, 0.75])
    others = opinions([None, None, 0.9, 0.8, 0.5, 0.5, 0.5, 0.5])
    run = trainer(tmp_path, reward=[ones, others])
    batch = run.shape(run.score(run.sample(examples(run))))
    weights = batch["weights"].view(2, 4)
    assert weights[0].tolist() == [0.0] * 4
    assert float(weights[1].sum()) == pytest.approx(1.0)


class BestOfTwo:
    """A decoder of one's own that knows a reward: of two samples the longer text, without a density."""

    def __call__(self, model, prompt_ids, prompt_mask, generation_config, *, prompts=None, columns=None, **more):
        drawn = [SamplingDecoder()(model, prompt_ids, prompt_mask, generation_config) for _ in range(2)]
        longer = max(drawn, key=lambda made: int(made.completion_mask.sum()))
        return replace(longer, log_density=None)


def test_a_decoder_of_ones_own_may_know_the_reward(tmp_path):
    own = {"proposal": "own", "weighting": "uniform", "num_generations": 1, "max_steps": 2}
    run = trainer(tmp_path, decoder=BestOfTwo(), **own)
    run.train()
    assert run.state.log_history[0]["grad_norm"] > 0
    with pytest.raises(ConfigError, match="proposal='own' is a decoder of your own; pass it as decoder="):
        trainer(tmp_path, **own)
    with pytest.raises(ConfigError, match=r"weighting='uniform'.* proposal to 'own'"):
        trainer(tmp_path, decoder=BestOfTwo(), weighting="uniform")
    with pytest.raises(ConfigError, match="discriminator_samples=0 takes what the proposal 'own' drew"):
        trainer(tmp_path, decoder=BestOfTwo(), discriminator_samples=0, **own)
    with pytest.raises(ConfigError, match="has no setting 'top_p'"):
        trainer(tmp_path, decoder=BestOfTwo(), proposal="own", proposal_settings={"top_p": 0.5})


class Counts(Events):
    """Says how often it was updated before, and which updates were repeated."""

    def update(self, prompts, completions, references):
        self.events.append(("update", list(completions)))
        return {"before": len(self.events)}

    def update_again(self, prompts, completions, references):
        self.events.append(("again", list(completions)))


def test_further_updates_on_one_sample_are_said_to_be_further_ones(tmp_path):
    reward = Counts()
    run = trainer(tmp_path, reward=reward, discriminator_updates=3)
    run.sample(examples(run))
    assert [kind for kind, _ in reward.events] == ["update", "again", "again"]
    assert reward.events[0][1] == reward.events[2][1]
    assert run.reward_states.last["events/before"] == 1.0


def test_a_run_that_is_resumed_amid_a_rollout_logs_what_the_last_update_found(tmp_path):
    settings = {"num_iterations": 3, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", reward=Events(), **settings)
    whole.train()
    resumed = trainer(tmp_path / "whole", reward=Events(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))

    def seen(run):
        return [row["events/seen"] for row in run.state.log_history if "loss" in row and row["step"] == 3]

    assert seen(whole) and seen(resumed) == seen(whole)


def test_likeliest_tokens_are_those_of_the_policy_that_sampled_without_dropout(tmp_path):
    model = tiny_causal_lm()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    run = trainer(tmp_path, model=model, disable_dropout=False, num_iterations=2, control_variate=True)
    rollout = run.score(run.sample(examples(run)))
    run.model.train()
    first, second = (run._next_tokens(rollout)["next_probs"] for _ in range(2))
    assert torch.equal(first, second) and run.model.training


def test_what_chooses_by_a_reward_is_a_decoder_as_it_is(tmp_path):
    tokenizer, own = tiny_tokenizer(), {"proposal": "own", "num_generations": 1, "max_steps": 1}
    run = trainer(tmp_path, decoder=BestOfN(vowels, tokenizer, n=3), weighting="uniform", **own)
    run.train()
    made = run.sample(examples(run)).made
    assert made.completion_ids.shape[0] == 2 and made.log_density is None
    search = MCTS(vowels, tokenizer, simulations=4, visit_temperature=1.0, policy_share=0.2)
    weighted = trainer(tmp_path, decoder=search, proposal="own", max_steps=1)
    weighted.train()
    assert weighted.sample(examples(weighted)).made.log_density.isfinite().all()
    with pytest.raises(ConfigError, match=r"decoder='best_of_n'; expected a decoder, such as BestOfN"):
        trainer(tmp_path, decoder="best_of_n", weighting="uniform", **own)
    with pytest.raises(
        ConfigError, match=r"SearchDecoder gives none \(log_density\).*'uniform' \(with proposal='own'\)"
    ):
        trainer(tmp_path, decoder=BestOfN(vowels, tokenizer, n=3), max_steps=1).train()
