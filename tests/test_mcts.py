"""Monte Carlo tree search: token by token and visit by visit what a plain serial search finds."""

import pytest
import torch
from serial_search import SerialSearch
from transformers import (
    GPT2Config,
    GPT2ForTokenClassification,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from alignkit import MCTS
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prompts import encode_prompts, pad_left, pad_right
from alignkit.models.recurrent import GRUSeq2SeqConfig, GRUSeq2SeqForConditionalGeneration, LSTMConfig, LSTMForCausalLM
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.models.tree import TreeReader

PROMPTS = ["i loved the film", "the plot was", "this movie is very dull but", "it"]
LENGTH = 6


def gru():
    torch.manual_seed(0)
    return GRUSeq2SeqForConditionalGeneration(GRUSeq2SeqConfig(vocab_size=len(tiny_tokenizer()), hidden_size=16))


def lstm():
    torch.manual_seed(0)
    return LSTMForCausalLM(LSTMConfig(vocab_size=len(tiny_tokenizer()), hidden_size=16, embedding_size=16))


MAKERS = {"gpt2": tiny_causal_lm, "t5": tiny_seq2seq, "gru": gru, "lstm": lstm}


def made(kind="gpt2"):
    """Peaked, so that a search goes deep, and in double precision, so that rounding decides nothing."""
    model = MAKERS[kind]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6 if kind in ("gpt2", "gru", "lstm") else 1.5)
    return model


def worth(ids):
    """Of token ids, in [0, 1]: texts of one beginning differ."""
    return (sum((place + 2) * token * 7 for place, token in enumerate(ids)) % 23) / 22


def by_ids(completion_ids, **columns):
    return [worth(ids) for ids in completion_ids]


class Causal:
    """A token classifier as a reward: the probability at the last token."""

    __name__ = "causal"

    def __init__(self):
        torch.manual_seed(3)
        self.tokenizer = tiny_tokenizer()
        config = GPT2Config(
            vocab_size=len(self.tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, num_labels=1,
            initializer_range=0.5, bos_token_id=1, eos_token_id=1, pad_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0,
            resid_pdrop=0.0, classifier_dropout=0.0,
        )  # fmt: skip
        self.model = GPT2ForTokenClassification(config).double().eval()
        self.text_calls = 0

    def whole(self, prompt, ids):
        tokens = torch.tensor([[*self.tokenizer(prompt)["input_ids"], *ids]])
        with torch.no_grad():
            return float(self.model(input_ids=tokens).logits[0, -1, 0].sigmoid())

    def __call__(self, prompts, completions, completion_ids, **columns):
        self.text_calls += 1
        return [self.whole(prompt, ids) for prompt, ids in zip(prompts, completion_ids, strict=True)]

    def begin(self, prompts, processing_class, columns):
        ids, mask = pad_left(encode_prompts(processing_class, prompts), 0)
        reader = TreeReader.of(self.model, ids, mask)

        class Scorer:
            def extend(self, parents, tokens):
                return reader.extend(parents, tokens)[:, 0].sigmoid().tolist()

            def keep(self, nodes):
                reader.keep(nodes)

        return Scorer()


def found(model, reward, prompts=PROMPTS, length=LENGTH, config=None, more=None, **settings):
    tokenizer = tiny_tokenizer()
    pad = pad_right if model.config.is_encoder_decoder else pad_left
    ids, mask = pad(encode_prompts(tokenizer, prompts), tokenizer.pad_token_id)
    how = generation_config_for(model, tokenizer, max_new_tokens=length, return_dict_in_generate=True, **(config or {}))
    return model.generate(
        input_ids=ids, attention_mask=mask, generation_config=how,
        custom_generate=MCTS(reward, tokenizer, **settings), prompts=prompts, **(more or {}),
    )  # fmt: skip


def serial(model, reward, prompts=PROMPTS, length=LENGTH, processors=(), **settings):
    encoded = encode_prompts(tiny_tokenizer(), prompts)
    how = {"simulations": 50, "children": 50, "exploration": 8.0, "backup": "max", "value": "prefix", **settings}
    rewards = [reward if not isinstance(reward, Causal) else _bound(reward, prompt) for prompt in prompts]
    with torch.no_grad():
        searches = [
            SerialSearch(model, ids, each, length=length, processors=processors, **how)
            for ids, each in zip(encoded, rewards, strict=True)
        ]
        return [search.run() for search in searches]


def _bound(reward, prompt):
    return lambda ids: reward.whole(prompt, ids)


def visits_of(out):
    return [[list(zip(step.tokens, step.visits, strict=True)) for step in steps] for steps in out.steps]


@pytest.mark.parametrize("backup", ["max", "mean"])
@pytest.mark.parametrize("value", ["prefix", "rollout"])
@pytest.mark.parametrize("kind", MAKERS)
def test_tokens_and_visits_are_those_of_a_serial_search(kind, value, backup):
    model = made(kind)
    how = {"simulations": 24, "children": 6, "exploration": 1.5, "value": value, "backup": backup}
    expected = serial(model, worth, **how)
    for keep in (True, False):
        out = found(model, by_ids, keep_subtree=keep, **how)
        assert out.completion_ids == [text for text, _ in expected]
        assert visits_of(out) == [steps for _, steps in expected]
    assert out.rewards.tolist() == pytest.approx([worth(text) for text, _ in expected])
    assert max(len(step) for _, steps in expected for step in steps) > 1, "nothing to search"
    assert any(counts[0][1] < max(n for _, n in counts) for _, steps in expected for counts in steps), "only greedy"


@pytest.mark.parametrize("keep", [True, False])
def test_a_reward_that_reads_tokens_is_asked_for_nothing_else(keep):
    model, reward = made(), Causal()
    how = {"simulations": 30, "children": 8, "exploration": 2.0, "backup": "mean", "keep": keep}
    expected = serial(model, reward, **how)
    del how["keep"]
    out = found(model, reward, keep_subtree=keep, **how)
    assert out.completion_ids == [text for text, _ in expected]
    assert visits_of(out) == [steps for _, steps in expected]
    assert reward.text_calls == 1, "once, for the rewards of the end"
    assert out.rewards.tolist() == pytest.approx(
        [reward.whole(prompt, ids) for prompt, ids in zip(PROMPTS, out.completion_ids, strict=True)]
    )


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_processors_are_respected(kind):
    model = made(kind)
    how = {"simulations": 20, "children": 5, "exploration": 1.0}
    penalty = [RepetitionPenaltyLogitsProcessor(1.7), TemperatureLogitsWarper(1.4), TopPLogitsWarper(0.8)]
    config = {"repetition_penalty": 1.7, "temperature": 1.4, "top_p": 0.8}
    expected = serial(model, worth, processors=penalty, **how)
    out = found(model, by_ids, config=config, **how)
    assert out.completion_ids == [text for text, _ in expected]
    assert visits_of(out) == [steps for _, steps in expected]
    assert visits_of(out) != visits_of(found(model, by_ids, **how)), "they change nothing here"


@pytest.mark.parametrize("kind", MAKERS)
def test_a_prompt_fares_alone_as_it_does_beside_others(kind):
    model = made(kind)
    uniform = torch.rand((4, LENGTH, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    how = {"simulations": 16, "children": 5, "exploration": 2.0, "visit_temperature": 1.0, "policy_share": 0.2}
    together = found(model, by_ids, more={"uniform": uniform}, **how)
    for row, prompt in enumerate(PROMPTS):
        alone = found(model, by_ids, prompts=[prompt], more={"uniform": uniform[row : row + 1]}, **how)
        assert alone.completion_ids[0] == together.completion_ids[row]
        assert visits_of(alone)[0] == visits_of(together)[row]
        torch.testing.assert_close(alone.log_density[0], together.log_density[row])


def test_a_subtree_that_is_kept_saves_time_only():
    model = made()
    how = {"simulations": 40, "children": 6, "exploration": 0.5, "backup": "mean"}
    kept, anew = (found(model, by_ids, keep_subtree=keep, **how) for keep in (True, False))
    assert visits_of(kept) == visits_of(anew)
    assert kept.evaluations < 0.7 * anew.evaluations


def test_a_prompt_that_has_ended_costs_nothing():
    """The fourth prompt is ended by its reward at once: the model then reads ever fewer rows."""
    model = made()
    rows = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    def ends(prompts, completion_ids, **columns):
        pairs = zip(prompts, completion_ids, strict=True)
        return [0.0 if prompt != "it" else 1.0 if ids[0] == 1 else -10.0 for prompt, ids in pairs]

    out = found(model, ends, simulations=60, children=35, exploration=0.1)
    lengths = [len(ids) for ids in out.completion_ids]
    assert lengths[3] == 1 and max(lengths) == LENGTH
    assert rows[-1] < len(PROMPTS)
    read = sum(rows)
    alone = found(model, ends, prompts=PROMPTS[:3], simulations=60, children=35, exploration=0.1)
    assert alone.completion_ids == out.completion_ids[:3]
    assert read - (sum(rows) - read) <= 62, "the fourth prompt was read after its end"
