"""DAS: against a plain beam search written here, transformers' own, and an enumerated space."""

import math

import pytest
import torch
from test_mcts import PROMPTS, Causal, by_ids, made, worth
from test_mcts_density import log_p as log_p_of
from test_mcts_density import small, texts

from alignkit import DAS
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prompts import encode_prompts, pad_left, pad_right
from alignkit.decoding.proposal import SearchProposal
from alignkit.errors import ConfigError, RewardValueError
from alignkit.models.tiny import tiny_tokenizer

LENGTH, END = 5, 1


def inputs(model, prompts=PROMPTS, length=LENGTH, **config):
    tokenizer = tiny_tokenizer()
    pad = pad_right if model.config.is_encoder_decoder else pad_left
    ids, mask = pad(encode_prompts(tokenizer, prompts), tokenizer.pad_token_id)
    how = generation_config_for(model, tokenizer, max_new_tokens=length, **{"return_dict_in_generate": True, **config})
    return {"input_ids": ids, "attention_mask": mask, "generation_config": how}


def found(model, reward, **settings):
    das = DAS(reward, tiny_tokenizer(), **settings)
    return model.generate(**inputs(model), custom_generate=das, prompts=PROMPTS)


def plain_search(model, prompt, reward, beams, candidates, alpha):
    """Beams of (score, log p, ids), every text read anew."""
    kept = [(0.0, 0.0, [])]
    while not all(ids and (ids[-1] == END or len(ids) == LENGTH) for _, _, ids in kept):
        made_now = []
        for score, log_p, ids in kept:
            if ids and ids[-1] == END:
                made_now.insert(0, (score, log_p, ids))
        for _, log_p, ids in kept:
            if ids and ids[-1] == END:
                continue
            if model.config.is_encoder_decoder:
                start = [model.config.decoder_start_token_id, *ids]
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([start])).logits
            else:
                logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits
            each = logits[0, -1].log_softmax(-1).tolist()
            for token in sorted(range(len(each)), key=lambda t: -each[t])[:candidates]:
                text = [*ids, token]
                total = log_p + each[token]
                d = reward(text)
                ranked = total + (alpha * (math.log(d) if d > 0 else -math.inf) if alpha else 0.0)
                made_now.append((ranked, total, text))
        kept = sorted(made_now, key=lambda beam: -beam[0])[:beams]
    return kept[0]


@pytest.mark.parametrize("kind", ["gpt2", "t5", "gru", "lstm"])
def test_what_is_found_is_what_a_plain_beam_search_finds(kind):
    model = made(kind)
    out = found(model, by_ids, beams=3, candidates=6, alpha=2.0)
    with torch.no_grad():
        expected = [
            plain_search(model, ids, worth, beams=3, candidates=6, alpha=2.0)
            for ids in encode_prompts(tiny_tokenizer(), PROMPTS)
        ]
    assert out.completion_ids == [ids for _, _, ids in expected]
    assert out.scores.tolist() == pytest.approx([score for score, _, _ in expected])
    assert out.log_probs.sum(1).tolist() == pytest.approx([log_p for _, log_p, _ in expected], abs=1e-5)
    assert out.log_density is None
    assert out.completion_ids != found(model, by_ids, beams=3, candidates=6, alpha=0.0).completion_ids


def test_a_reward_that_reads_tokens_finds_the_same():
    model, reward = made(), Causal()
    out = found(model, reward, beams=2, candidates=5, alpha=3.0)
    assert reward.text_calls == 1
    with torch.no_grad():
        for prompt, ids, got in zip(
            PROMPTS, encode_prompts(tiny_tokenizer(), PROMPTS), out.completion_ids, strict=True
        ):
            own = plain_search(model, ids, lambda text, p=prompt: reward.whole(p, text), 2, 5, 3.0)
            assert got == own[2]


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_without_the_reward_it_is_the_hosts_beam_search(kind):
    """Where no text can end early: the host sets ended texts aside, and DAS lets them keep their place."""
    model = made(kind)
    how = {"suppress_tokens": [END], "do_sample": False}
    host = model.generate(**inputs(model, num_beams=3, length_penalty=0.0, **how))
    das = DAS(by_ids, tiny_tokenizer(), beams=3, candidates=6, alpha=0.0)
    mine = model.generate(**inputs(model, **how), custom_generate=das, prompts=PROMPTS)
    assert torch.equal(mine.sequences, host.sequences)


def test_the_density_sums_to_one_and_is_what_is_reported():
    model, tokenizer = small(), tiny_tokenizer(["x", "y"])
    candidates, alpha, share = 3, 1.5, 0.25
    chances = {}
    for prefix in {text[:cut] for text in texts() for cut in range(len(text))}:
        with torch.no_grad():
            p = model(input_ids=torch.tensor([[4, *prefix]])).logits[0, -1].softmax(-1).tolist()
        best = sorted(range(5), key=lambda t: -p[t])[:candidates]
        weights = {t: p[t] * worth([*prefix, t]) ** alpha for t in best}
        total = sum(weights.values())
        chances[prefix] = [(1 - share) * weights.get(t, 0.0) / total + share * p[t] for t in range(5)]
    table = {text: math.prod(chances[text[:cut]][t] for cut, t in enumerate(text)) for text in texts()}
    assert sum(table.values()) == pytest.approx(1.0, abs=1e-12) and min(table.values()) > 0
    das = DAS(by_ids, tokenizer, candidates=candidates, alpha=alpha, sample=True, policy_share=share)
    ids = torch.full((400, 1), 4)
    config = generation_config_for(model, tokenizer, max_new_tokens=3)
    torch.manual_seed(0)
    made_now = SearchProposal(das)(model, ids, torch.ones_like(ids), config, prompts=["x"] * 400)
    for row, text in enumerate(made_now.ids()):
        assert float(made_now.log_density[row]) == pytest.approx(math.log(table[tuple(text)]), abs=1e-9)
        assert float(made_now.log_probs[row].sum()) == pytest.approx(sum(log_p_of(model, text)), abs=1e-5)
    frequent = max(table, key=table.get)
    drawn = sum(tuple(text) == frequent for text in made_now.ids()) / 400
    assert abs(drawn - table[frequent]) < 4 * math.sqrt(table[frequent] * (1 - table[frequent]) / 400)


def test_what_is_forbidden_is_forbidden_to_the_policys_share_too():
    model, tokenizer = small(), tiny_tokenizer(["x", "y"])
    das = DAS(by_ids, tokenizer, candidates=2, sample=True, policy_share=1.0)
    ids = torch.full((100, 1), 4)
    config = generation_config_for(model, tokenizer, max_new_tokens=3, bad_words_ids=[[2]])
    torch.manual_seed(0)
    drawn = SearchProposal(das)(model, ids, torch.ones_like(ids), config, prompts=["x"] * 100)
    for row, text in enumerate(drawn.ids()):
        assert 2 not in text
        with torch.no_grad():
            p = [model(input_ids=torch.tensor([[4, *text[:i]]])).logits[0, -1].softmax(-1) for i in range(len(text))]
        expected = sum(math.log(float(each[token] / (1 - each[2]))) for each, token in zip(p, text, strict=True))
        assert float(drawn.log_density[row]) == pytest.approx(expected, abs=1e-9)
    assert len({tuple(text) for text in drawn.ids()}) > 10


def test_a_reward_of_any_range_is_an_exponent():
    model = made()

    def logs(completion_ids, **columns):
        return [math.log(worth(ids)) if worth(ids) else -50.0 for ids in completion_ids]

    one = found(model, logs, beams=2, candidates=4, reward_as="exponential")
    other = found(model, by_ids, beams=2, candidates=4)
    assert one.completion_ids == other.completion_ids
    with pytest.raises(RewardValueError, match=r"reward 'logs' gave -.*reward_as='exponential'"):
        found(model, logs, beams=2)


def test_no_opinion_comes_after_all_others():
    model = made()

    def some(completion_ids, **columns):
        return [None if ids[0] == choice else 1e-9 for ids in completion_ids]

    choice = found(model, by_ids, alpha=0.0).completion_ids[0][0]
    assert found(model, some).completion_ids[0][0] != choice
    nobody = found(model, lambda completions, **columns: [None] * len(completions))
    assert nobody.rewards.isnan().all() and all(nobody.completion_ids)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"beams": 0}, "beams is a whole number of 1 or more, got 0"),
        ({"candidates": "9"}, "candidates is a whole number of 1 or more, got '9'"),
        ({"alpha": -0.5}, "alpha is a finite number of 0 or more, got -0.5"),
        ({"policy_share": 0.1}, "set sample=True"),
        ({"beams": 4, "sample": True}, "leave beams=4 out"),
        ({"reward_as": "logit"}, "reward_as is one of probability, exponential; got 'logit'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        DAS(by_ids, tiny_tokenizer(), **settings)
