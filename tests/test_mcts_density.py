"""Monte Carlo tree search in spaces so small that everything can be enumerated."""

import itertools
import math

import pytest
import torch
from serial_search import SerialSearch
from test_mcts import found, made
from transformers import AutoModelForCausalLM, GPT2Config

from alignkit import MCTS
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.proposal import SearchProposal
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import ConfigError, DataError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer

V, LENGTH, END = 5, 3, 1


def small(seed=5):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=8, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        bos_token_id=1, eos_token_id=1, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).double().eval()


def texts():
    """Every completion: ended by the end-of-sequence token, or at the greatest length."""
    for ids in itertools.product(range(V), repeat=LENGTH):
        if END not in ids[:-1]:
            yield ids
    for length in range(1, LENGTH):
        for ids in itertools.product([t for t in range(V) if t != END], repeat=length - 1):
            yield (*ids, END)


def worth(ids):
    return (sum((place + 2) * token * 7 for place, token in enumerate(ids)) % 23) / 22


def by_ids(completion_ids, **columns):
    return [worth(ids) for ids in completion_ids]


def proposal_of(model, rows, **settings):
    tokenizer = tiny_tokenizer(["x", "y"])
    search = MCTS(by_ids, tokenizer, **settings)
    ids = torch.full((rows, 1), 4)
    config = generation_config_for(model, tokenizer, max_new_tokens=LENGTH)
    torch.manual_seed(0)
    return SearchProposal(search)(model, ids, torch.ones_like(ids), config, prompts=["x"] * rows)


def log_p(model, ids):
    """Under the policy at temperature 1, each token."""
    with torch.no_grad():
        rows = model(input_ids=torch.tensor([[4, *ids]])).logits[0].log_softmax(-1)
    return [float(rows[place, token]) for place, token in enumerate(ids)]


@pytest.mark.parametrize("share, temperature", [(0.2, 1.0), (0.3, 0.5), (0.5, 0.0)])
def test_the_density_sums_to_one_and_is_what_the_search_says(share, temperature):
    """q of every text by a serial search of its own at each prefix; then what is drawn must report the same."""
    model = small()
    how = {"simulations": 12, "children": 3, "exploration": 1.0, "backup": "mean"}
    with torch.no_grad():
        serial = SerialSearch(model, [4], worth, value="prefix", length=LENGTH, keep=False, **how)
        chances: dict[tuple, dict[int, float]] = {}
        for prefix in {text[:cut] for text in texts() for cut in range(len(text))}:
            counts = serial.visits(prefix)
            most = max(n for _, n in counts)
            if temperature:
                weights = {token: n ** (1 / temperature) for token, n in counts}
            else:
                first = next(token for token, n in counts if n == most)
                weights = {first: 1.0}
            plain = serial.scores(prefix)[0].softmax(-1)
            total = sum(weights.values())
            chances[prefix] = {t: (1 - share) * weights.get(t, 0.0) / total + share * float(plain[t]) for t in range(V)}
    table = {text: math.prod(chances[text[:cut]][token] for cut, token in enumerate(text)) for text in texts()}
    assert sum(table.values()) == pytest.approx(1.0, abs=1e-12)
    assert min(table.values()) > 0
    drawn = proposal_of(model, 400, visit_temperature=temperature, policy_share=share, **how)
    seen = set()
    for row, ids in enumerate(drawn.ids()):
        seen.add(tuple(ids))
        assert float(drawn.log_density[row]) == pytest.approx(math.log(table[tuple(ids)]), abs=1e-9)
        expected = log_p(model, ids)
        assert drawn.log_probs[row, : len(ids)].tolist() == pytest.approx(expected, abs=1e-5)
        assert not drawn.log_probs[row, len(ids) :].any()
    assert sum(table[text] for text in seen) > 0.8, "hardly anything was drawn"
    frequent = max(table, key=table.get)
    share_drawn = sum(tuple(ids) == frequent for ids in drawn.ids()) / 400
    assert abs(share_drawn - table[frequent]) < 4 * math.sqrt(table[frequent] * (1 - table[frequent]) / 400)


def test_enough_simulations_find_the_best_of_all_texts():
    """With the maximum backed up and a flat policy, every text is visited: the best one is written."""
    for seed in range(3):
        model = small(seed)
        tokenizer = tiny_tokenizer(["x", "y"])
        config = generation_config_for(
            model, tokenizer, max_new_tokens=LENGTH, temperature=9.0, return_dict_in_generate=True
        )

        def ends(completion_ids, **columns):
            """Of whole texts only, so that beginnings lead nowhere by themselves."""
            whole = [len(ids) == LENGTH or ids[-1] == END for ids in completion_ids]
            return [worth(ids) ** 8 if done else 0.0 for ids, done in zip(completion_ids, whole, strict=True)]

        out = model.generate(
            input_ids=torch.tensor([[4]]), generation_config=config,
            custom_generate=MCTS(ends, tokenizer, simulations=3000, children=V, exploration=5.0),
        )  # fmt: skip
        assert worth(out.completion_ids[0]) == max(map(worth, texts()))


@pytest.mark.parametrize("settings", [{}, {"children": 1, "simulations": 9}], ids=["one simulation", "one child"])
def test_a_search_without_a_choice_is_greedy(settings):
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    ids = torch.tensor([[4, 9, 7], [0, 6, 3]])
    mask = (ids != 0).long()
    config = generation_config_for(model, tokenizer, max_new_tokens=7, temperature=0)
    plain = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    search = MCTS(by_ids, tokenizer, **{"simulations": 1, **settings})
    found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, custom_generate=search)
    assert torch.equal(found, plain)


def test_the_policys_share_alone_is_plain_sampling():
    model = small()
    drawn = proposal_of(model, 300, policy_share=1.0, simulations=2)
    for row, ids in enumerate(drawn.ids()):
        assert float(drawn.log_density[row]) == pytest.approx(sum(log_p(model, ids)), abs=1e-9)
    ended = sum(END in ids for ids in drawn.ids()) / 300
    whole = sum(math.exp(sum(log_p(model, text))) for text in texts() if END in text)
    assert abs(ended - whole) < 4 * math.sqrt(whole * (1 - whole) / 300)


def test_several_leaves_a_wave_ask_less_often():
    model, asked = made(), {}
    for backup, wave in itertools.product(("mean", "max"), (1, 4)):
        how = {"simulations": 25, "children": 4, "exploration": 1.0, "backup": backup, "leaves_per_wave": wave}
        out = found(model, by_ids, **how)
        asked[backup, wave] = out.evaluations
        for steps in out.steps:
            assert all(1 + sum(step.visits) == 25 for step in steps), "visits were lost"
            for step in steps:
                assert all(0 <= quality <= 1 for quality in step.quality)
    assert asked["mean", 4] < 0.7 * asked["mean", 1] and asked["max", 4] < 0.7 * asked["max", 1]


def test_no_opinion_is_worth_nothing():
    model, tokenizer = small(), tiny_tokenizer(["x", "y"])
    config = generation_config_for(model, tokenizer, max_new_tokens=LENGTH, return_dict_in_generate=True)
    outputs = []
    for missing in (None, 0.0):

        def some(completion_ids, missing=missing, **columns):
            return [worth(ids) if ids[0] != 2 else missing for ids in completion_ids]

        search = MCTS(some, tokenizer, simulations=30, children=4, exploration=0.5)
        outputs.append(model.generate(input_ids=torch.tensor([[4]]), generation_config=config, custom_generate=search))
    assert outputs[0].steps == outputs[1].steps
    nobody = MCTS(lambda completions, **columns: [None] * len(completions), tokenizer, simulations=5)
    out = model.generate(input_ids=torch.tensor([[4]]), generation_config=config, custom_generate=nobody)
    assert out.rewards.isnan().all()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"simulations": 0}, "simulations is a whole number of 1 or more, got 0"),
        ({"children": 2.5}, "children is a whole number of 1 or more, got 2.5"),
        ({"leaves_per_wave": True}, "leaves_per_wave is a whole number"),
        ({"exploration": -1}, "exploration is a finite number of 0 or more, got -1"),
        ({"exploration": float("nan")}, "exploration is a finite number"),
        ({"policy_share": 1.2}, "policy_share is a finite number between 0 and 1, got 1.2"),
        ({"value": "text"}, "value is one of prefix, rollout; got 'text'"),
        ({"backup": "sum"}, "backup is one of max, mean; got 'sum'"),
        ({"rollout_temperature": 1.0}, "is for value='rollout'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, expected):
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(")):
        MCTS(by_ids, tiny_tokenizer(), **settings)


def test_what_cannot_work_is_refused():
    model, tokenizer = small(), tiny_tokenizer(["x", "y"])
    search = MCTS(by_ids, tokenizer, simulations=3)
    assert not SearchProposal(MCTS(by_ids, tokenizer, visit_temperature=1.0)).has_full_support
    ids = torch.tensor([[4]])

    def ask(**more):
        config = generation_config_for(model, tokenizer, max_new_tokens=2, **more.pop("config", {}))
        return model.generate(**{"input_ids": ids, "generation_config": config, "custom_generate": search, **more})

    with pytest.raises(ConfigError, match="searches by itself; leave num_beams=2 out"):
        ask(config={"num_beams": 2})
    with pytest.raises(ConfigError, match="has no use for MaxTimeCriteria"):
        ask(config={"max_time": 1.0})
    with pytest.raises(DataError, match=r"completes 1 prompts, but got \{'prompts': 2\}"):
        ask(prompts=["a", "b"])
    with pytest.raises(ConfigError, match="not inputs_embeds"):
        ask(input_ids=None, inputs_embeds=model.get_input_embeddings()(ids), prompts=["x"])


def test_a_proposal_gives_what_plain_sampling_gives():
    """The same attributes, of the same shapes and types, so that a trainer takes either."""
    model, tokenizer = small().float(), tiny_tokenizer(["x", "y"])
    ids = torch.tensor([[0, 4], [3, 4]])
    mask = torch.tensor([[0, 1], [1, 1]])
    config = generation_config_for(model, tokenizer, max_new_tokens=3)
    search = MCTS(by_ids, tokenizer, simulations=6, visit_temperature=1.0, policy_share=0.1)
    model.train()
    drawn = SearchProposal(search)(model, ids, mask, config, prompts=["a", "b"])
    assert model.training
    plain = SamplingDecoder()(model, ids, mask, config)
    for these in (drawn, plain):
        rows, width = these.completion_ids.shape
        assert rows == 2 and these.completion_mask.shape == these.log_probs.shape == (rows, width)
        assert these.log_density.shape == (2,) and (these.log_density < 0).all()
        assert these.prompt_ids is ids and these.completion_mask.dtype == torch.long
    assert drawn.log_probs.dtype == plain.log_probs.dtype
    exact = SearchProposal(search)(model.double(), ids, mask, config, prompts=["a", "b"])
    assert exact.log_probs.dtype == torch.float64
    best = SearchProposal(MCTS(by_ids, tokenizer, simulations=6))(model, ids, mask, config, prompts=["a", "b"])
    assert best.log_density is None and best.log_probs is not None


def test_what_is_forbidden_is_forbidden_to_the_policys_share_too():
    """An end before the third token, and token 2 at all: the rest of p, renormalised, has the policy's share."""
    model, tokenizer = small(), tiny_tokenizer(["x", "y"])
    ids = torch.full((300, 1), 4)
    more = {"min_new_tokens": 3, "bad_words_ids": [[2]]}
    config = generation_config_for(model, tokenizer, max_new_tokens=LENGTH, **more)
    search = MCTS(by_ids, tokenizer, simulations=4, children=2, visit_temperature=1.0, policy_share=1.0)
    torch.manual_seed(0)
    drawn = SearchProposal(search)(model, ids, torch.ones_like(ids), config, prompts=["x"] * 300)
    seen = set()
    for row, text in enumerate(drawn.ids()):
        assert len(text) == LENGTH and not {END, 2} & set(text)
        log_density = 0.0
        for place, token in enumerate(text):
            with torch.no_grad():
                p = model(input_ids=torch.tensor([[4, *text[:place]]])).logits[0, -1].softmax(-1)
            allowed = [t for t in range(V) if t not in (2, END)]
            log_density += math.log(float(p[token] / p[allowed].sum()))
        assert float(drawn.log_density[row]) == pytest.approx(log_density, abs=1e-9)
        assert float(drawn.log_probs[row].sum()) == pytest.approx(sum(log_p(model, text)), abs=1e-9)
        seen.add(tuple(text))
    assert len(seen) > 10  # tokens beyond the two children too
