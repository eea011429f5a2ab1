"""Beginnings scored by any reward: as text, with its columns, and without learning from it."""

import math

import pytest
import torch

from alignkit import DAS, MCTS
from alignkit.compose import WeightedProduct, WeightedSum
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prefix_scores import TextScorer, prefix_scorer
from alignkit.errors import ModelError, RewardCallError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.reward import LearnedReward, PrefixReward


def ids_of(text):
    return tiny_tokenizer()(text)["input_ids"]


def test_texts_are_put_together_from_the_tree():
    seen = []

    def reward(prompts, completions, mood, completion_ids, **columns):
        seen.append((prompts, completions, mood, completion_ids))
        return [None if "bad" in text else len(text.split()) for text in completions]

    scorer = TextScorer(reward, ["one", "two"], tiny_tokenizer(), {"mood": ["calm", "wild"]})
    the, film, bad = ids_of("the film bad")
    assert scorer.extend([0, 1, 1], [the, film, bad])[:2] == [1.0, 1.0]
    scores = scorer.extend([3, 2, 4, 3], [film, the, the, bad])
    assert scores[:2] == [2.0, 2.0] and all(math.isnan(score) for score in scores[2:])
    assert seen[1][0] == ["two", "one", "two", "two"]
    assert seen[1][1] == [" film film", " the the", " bad the", " film bad"]
    assert seen[1][2] == ["wild", "calm", "wild", "wild"]
    assert seen[1][3] == [[film, film], [the, the], [bad, the], [film, bad]]
    scorer.keep([5])
    with pytest.raises(ModelError, match="were forgotten"):
        scorer.extend([6], [the])
    assert scorer.extend([5], [the]) == [3.0]


def test_message_prompts_get_message_completions_and_lists_of_scores_are_summed():
    def reward(prompts, completions, **columns):
        assert completions == [[{"role": "assistant", "content": "the film"}]]
        return [[0.25, 0.5]]

    reward.granularity = "token"
    scorer = TextScorer(reward, [[{"role": "user", "content": "hi"}]], tiny_tokenizer(), {})
    assert scorer.scores([0], [ids_of("the film")]) == [0.75]


def test_a_reward_that_cannot_read_the_tokens_is_called_on_text():
    class Choosy:
        def __call__(self, prompts, completions, **columns):
            return [0.5] * len(completions)

        def begin(self, prompts, processing_class, columns):
            return None if columns["no"][0] else "its own"

    assert isinstance(Choosy(), PrefixReward)
    assert isinstance(prefix_scorer(Choosy(), ["a"], tiny_tokenizer(), {"no": [True]}), TextScorer)
    assert prefix_scorer(Choosy(), ["a"], tiny_tokenizer(), {"no": [False]}) == "its own"
    assert not isinstance(lambda completions, **columns: [], PrefixReward)


class Counts:
    """Gives a beginning half of what it gives the same text when it is finished."""

    __name__ = "counts"

    def __call__(self, prompts, completions, **columns):
        return [0.1 * len(text.split()) for text in completions]

    def begin(self, prompts, processing_class, columns):
        scorer = TextScorer(self, prompts, processing_class, columns)
        return Ahead(scorer)


class Ahead:
    def __init__(self, scorer):
        self.scorer = scorer

    def extend(self, parents, tokens):
        return [score / 2 for score in self.scorer.extend(parents, tokens)]

    def keep(self, nodes):
        self.scorer.keep(nodes)


@pytest.mark.parametrize("kind, expected", [(WeightedSum, 0.05 * 2 + 3 * 0.5), (WeightedProduct, 0.05**2 * 0.5**3)])
def test_the_parts_of_a_sum_and_a_product_are_asked_each_in_its_own_way(kind, expected):
    def half(prompts, completions, **columns):
        return [None if "bad" in text else 0.5 for text in completions]

    the, bad = ids_of("the bad")
    scorer = prefix_scorer(kind([Counts(), half], weights=[2.0, 3.0]), ["one", "two"], tiny_tokenizer(), {})
    first, without = scorer.extend([0, 1], [the, bad])
    assert first == pytest.approx(expected)
    assert without == pytest.approx(0.1 if kind is WeightedSum else 0.05**2)  # no opinion is left out
    scorer.keep([2])
    assert scorer.extend([2], [the])[0] == pytest.approx(0.1 * 2 + 1.5 if kind is WeightedSum else 0.1**2 * 0.125)
    plain = prefix_scorer(kind([half, half]), ["one"], tiny_tokenizer(), {})
    assert type(plain) is TextScorer  # one call for both


class Learner(LearnedReward):
    """Says whether it was training when it was asked."""

    __name__ = "learner"

    def __init__(self):
        self.modes = set()

    def __call__(self, prompts, completions, **columns):
        self.modes.add(self.training)
        return [0.5] * len(completions)

    def update(self, prompts, completions, references):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("search", [MCTS, DAS])
def test_a_reward_that_learns_does_not_learn_from_a_search(search):
    reward, model, tokenizer = Learner(), tiny_causal_lm(), tiny_tokenizer()
    settings = {"simulations": 6} if search is MCTS else {"beams": 2}
    config = generation_config_for(model, tokenizer, max_new_tokens=3)
    model.generate(
        input_ids=torch.tensor([[4, 5]]), generation_config=config, prompts=["a"],
        custom_generate=search(reward, tokenizer, **settings),
    )  # fmt: skip
    assert reward.modes == {False} and reward.training and not reward.has_pending


def test_a_reward_that_raises_stops_the_search():
    def broken(completions, **columns):
        raise ZeroDivisionError("no")

    scorer = TextScorer(broken, ["a"], tiny_tokenizer(), {})
    with pytest.raises(RewardCallError, match="reward 'broken' raised ZeroDivisionError"):
        scorer.extend([0], ids_of("the"))


@pytest.mark.parametrize("search", [MCTS, DAS])
def test_a_scorer_of_beginnings_hears_of_one_end_token(search):
    """A policy may end with several tokens (Llama 3); to a reader of beginnings they are the tokenizer's own."""
    heard = set()

    class Listens:
        def __init__(self, count):
            self.count = count

        def extend(self, parents, tokens):
            heard.update(int(token) for token in tokens)
            return [0.5] * len(parents)

        def keep(self, nodes):
            pass

    class Reward:
        __name__ = "listens"

        def __call__(self, prompts, completions, **columns):
            return [0.5] * len(completions)

        def begin(self, prompts, processing_class, columns):
            return Listens(len(prompts))

    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    others = list(range(6, 12))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *others]
    settings = {"simulations": 30} if search is MCTS else {"beams": 3, "candidates": 12}
    config = generation_config_for(model, tokenizer, max_new_tokens=3)
    model.generate(
        input_ids=torch.tensor([[4, 5]]), generation_config=config, prompts=["a"],
        custom_generate=search(Reward(), tokenizer, **settings),
    )  # fmt: skip
    assert tokenizer.eos_token_id in heard and not heard & set(others)
