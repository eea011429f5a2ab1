"""What a decoder does, and says, of a reward that has no say; what weights tell of a text's density."""

import logging

import pytest
import torch

from alignkit import DAS, BestOfN, Resample
from alignkit.decoding.generation import generation_config_for
from alignkit.errors import ConfigError
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer

PROMPTS = ["the movie is", "a story of"]


def made(decoder, make=tiny_causal_lm, length=3, **settings):
    model, tokenizer = make(), decoder.processing_class
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    config = generation_config_for(model, tokenizer, max_new_tokens=length, **settings)
    config.return_dict_in_generate = True
    torch.manual_seed(0)
    return model.generate(**inputs, custom_generate=decoder, prompts=PROMPTS, generation_config=config)


def silent(prompts, completions, **columns):
    return [0.5 if prompt == PROMPTS[0] else None for prompt in prompts]


def naught(prompts, completions, **columns):
    return [0.5 if prompt == PROMPTS[0] else 0.0 for prompt in prompts]


def every_second(prompts, completions, **columns):
    return [None, 0.5] * (len(completions) // 2)


def in_the_end(prompts, completions, **columns):
    """No opinion on the first tokens, and then on one text the more the longer its words are."""
    return [min(len(text) / 40, 1.0) if len(text.split()) > 2 else None for text in completions]


def sampled(reward, tokenizer):
    return DAS(reward, tokenizer, sample=True)


@pytest.mark.parametrize("make", [BestOfN, Resample, DAS, sampled])
@pytest.mark.parametrize("reward", [silent, naught, every_second, in_the_end])
def test_a_choice_that_the_reward_has_no_say_in_is_told_once(make, reward, caplog):
    decoder = make(reward, tiny_tokenizer())
    with caplog.at_level(logging.WARNING, logger="alignkit"):
        for _ in range(2):
            made(decoder, length=4, suppress_tokens=[1])
    told = [record.getMessage() for record in caplog.records]
    if reward in (every_second, in_the_end) or (reward is naught and make is BestOfN):  # of best of n 0 is an opinion
        assert told == []
    else:
        assert len(told) == 1 and f"reward '{reward.__name__}' gave no weight" in told[0]
        assert told[0].startswith(type(decoder).__name__) and "any text of 1 of 2 rows" in told[0]


@pytest.mark.parametrize("make", [tiny_causal_lm, tiny_seq2seq])
@pytest.mark.parametrize("nothing", [None, 0.0])
def test_beams_without_any_weight_are_those_of_the_policy(make, nothing):
    tokenizer = tiny_tokenizer()
    blind = made(DAS(lambda completions, **_: [nothing] * len(completions), tokenizer), make, length=6)
    plain = made(DAS(lambda completions, **_: [1.0] * len(completions), tokenizer, alpha=0.0), make, length=6)
    assert blind.completion_ids == plain.completion_ids
    assert blind.scores.tolist() == [-float("inf")] * 2 and plain.scores.isfinite().all()


def test_an_ended_text_without_weight_does_not_stand_in_the_way():
    """It came first of equals, whatever the policy thought of it."""
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with torch.no_grad():
        model.lm_head.bias[5], model.lm_head.bias[tokenizer.eos_token_id] = 9.0, 3.0
    found = made(DAS(lambda completions, **_: [None] * len(completions), tokenizer), lambda: model, length=4)
    assert found.completion_ids == [[5] * 4] * 2


def test_candidates_without_weights_have_no_density():
    def shorter(completions, **columns):
        return [1 / (1 + len(text)) for text in completions]

    decoder, texts = Resample(shorter, tiny_tokenizer(), n=4), ["", " a film"]
    with pytest.raises(ConfigError, match=r"pass top_k=0 to generate"):
        decoder.log_density_ratios(made(decoder, top_k=3).candidate_log_weights, PROMPTS, texts, [[1], [1]], {})
    weights = made(decoder).candidate_log_weights
    found = decoder.log_density_ratios(weights, PROMPTS, texts, [[1], [1]], {})
    for row, own in enumerate((1.0, 1 / 8)):  # each candidate left out in turn, by hand
        drawn = weights[row].exp().tolist()
        shares = [own / (own + sum(drawn) - out) for out in drawn]
        assert found[row] == pytest.approx(torch.tensor(shares).sum().log().item(), abs=1e-5)
    assert found[0] > found[1]
