"""Best of n: against candidates that are drawn apart, and against the distribution that can be enumerated."""

import itertools

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, GPT2Config

from alignkit import BestOfN
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prompts import behind, decode_completions, encode_prompts, pad_left
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import ConfigError, DataError
from alignkit.models.recurrent import GRUSeq2SeqConfig, GRUSeq2SeqForConditionalGeneration
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer

PROMPTS = ["i loved the film", "the plot was", "this movie is very dull but", "it"]
N = 5


def tiny_gru():
    torch.manual_seed(0)
    size = len(tiny_tokenizer())
    return GRUSeq2SeqForConditionalGeneration(GRUSeq2SeqConfig(vocab_size=size, hidden_size=16)).eval()


MAKERS = [tiny_causal_lm, tiny_seq2seq, tiny_gru]


def letters(prompts, completions, **columns):
    """Letters of the completion that its prompt has too: no two texts of a prompt are alike by accident only."""
    pairs = zip(prompts, completions, strict=True)
    return [sum(len(word) for word in text.split() if word[0] in prompt) for prompt, text in pairs]


def asked(model, prompts=PROMPTS, **settings):
    tokenizer = tiny_tokenizer()
    ids, mask = pad_left(encode_prompts(tokenizer, prompts), tokenizer.pad_token_id)
    config = generation_config_for(model, tokenizer, max_new_tokens=6, **{"temperature": 0.8, **settings})
    return {"input_ids": ids, "attention_mask": mask, "generation_config": config}


def chosen(model, reward, n=N, seed=0, prompts=PROMPTS, given=True, whole=True, more=None, **settings):
    inputs = asked(model, prompts, return_dict_in_generate=whole, **settings)
    torch.manual_seed(seed)
    texts = {"prompts": prompts} if given else {}
    return model.generate(**inputs, custom_generate=BestOfN(reward, tiny_tokenizer(), n), **texts, **(more or {}))


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.5}, {"repetition_penalty": 3.0}], ids=str)
@pytest.mark.parametrize("make", MAKERS)
def test_the_chosen_one_is_the_argmax_of_candidates_drawn_apart(make, settings):
    model, tokenizer = make(), tiny_tokenizer()
    out = chosen(model, letters, **settings)
    inputs = asked(model, **settings)
    repeated = [inputs[name].repeat_interleave(N, 0) for name in ("input_ids", "attention_mask")]
    torch.manual_seed(0)
    drawn = SamplingDecoder()(model, *repeated, inputs["generation_config"])
    prompts = [prompt for prompt in PROMPTS for _ in range(N)]
    texts = decode_completions(tokenizer, drawn.ids(), False, behind(model, prompts))
    scores = torch.tensor(letters(prompts, texts)).view(-1, N)
    assert (scores.max(1).values > scores.float().mean(1)).all(), "nothing to choose from"
    assert out.candidate_completions == [texts[first : first + N] for first in range(0, len(texts), N)]
    for field in ("completions", "completion_ids"):
        groups = zip(out[f"candidate_{field}"], out.chosen.tolist(), strict=True)
        assert out[field] == [group[place] for group, place in groups]
    assert torch.equal(out.candidate_rewards, scores.float())
    for row in range(len(PROMPTS)):
        best = scores[row].tolist().index(scores[row].max())
        assert out.chosen[row] == best and out.rewards[row] == scores[row, best]
        length = int(drawn.completion_mask[row * N + best].sum())
        begins = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        sequence = out.sequences[row]
        assert torch.equal(sequence[begins : begins + length], drawn.completion_ids[row * N + best, :length])
        assert (sequence[begins + length :] == tokenizer.pad_token_id).all()
        if not model.config.is_encoder_decoder:
            assert torch.equal(sequence[:begins], inputs["input_ids"][row])
        assert torch.equal(out.candidates[row, best, : len(sequence)], sequence)
    longest = max(int(drawn.completion_mask[row * N + out.chosen[row]].sum()) for row in range(len(PROMPTS)))
    assert out.sequences.shape[1] == begins + longest


@pytest.mark.parametrize("make", MAKERS)
def test_one_candidate_is_plain_sampling(make):
    model = make()
    inputs = asked(model)
    torch.manual_seed(3)
    drawn = SamplingDecoder()(model, inputs["input_ids"], inputs["attention_mask"], inputs["generation_config"])
    out = chosen(model, letters, n=1, seed=3, whole=False)
    begins = out.shape[1] - drawn.completion_ids.shape[1]
    assert begins == (1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1])
    assert torch.equal(out[:, begins:], drawn.completion_ids)
    greedy = chosen(model, letters, n=1, whole=False, temperature=0)
    plain = model.generate(**asked(model, temperature=0))
    assert torch.equal(greedy, plain)


@pytest.mark.parametrize(
    "scores, place",
    [([1.0, 3.0, 3.0], 1), ([None, -7.0, None], 1), ([None, None, None], 0), ([0.0, None, 0.0], 0)],
    ids=str,
)
def test_the_first_of_equals_counts_and_none_comes_last(scores, place):
    out = chosen(tiny_causal_lm(), lambda completions, **_: scores * len(PROMPTS), n=3)
    assert out.chosen.tolist() == [place] * len(PROMPTS)
    known = torch.tensor([float("nan") if score is None else score for score in scores])
    torch.testing.assert_close(out.candidate_rewards, known.expand(len(PROMPTS), 3), equal_nan=True)
    torch.testing.assert_close(out.rewards, known[place].expand(len(PROMPTS)), equal_nan=True)


@pytest.mark.parametrize("make", MAKERS)
def test_the_prompts_of_a_reward_are_those_given_or_the_text_of_the_tokens(make):
    seen = []

    def watch(prompts, completions, **columns):
        seen.append((prompts, completions, columns.get("mood"), columns["completion_ids"]))
        return [0.0] * len(completions)

    chosen(make(), watch, n=2, given=False)
    assert seen[0][0] == [prompt for prompt in PROMPTS for _ in range(2)] and isinstance(seen[0][1][0], str)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    inputs = asked(make())
    best = BestOfN(watch, tiny_tokenizer(), 2)
    make().generate(**inputs, custom_generate=best, prompts=messages, columns={"mood": list("abcd")})
    prompts, completions, mood, ids = seen[1]
    assert prompts[::2] == messages == prompts[1::2] and mood == list("aabbccdd")
    assert [len(completion) for completion in completions] == [1] * 8
    texts = decode_completions(tiny_tokenizer(), ids, False)
    assert completions == [[{"role": "assistant", "content": text}] for text in texts]
    assert all(1 not in row[:-1] for row in ids), "something after the end"


@pytest.mark.parametrize("make", MAKERS)
def test_a_prompt_fares_alone_as_it_does_beside_others(make):
    uniform = torch.rand((len(PROMPTS) * N, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = chosen(make(), letters, more={"uniform": uniform})
    for row, prompt in enumerate(PROMPTS):
        alone = chosen(make(), letters, prompts=[prompt], more={"uniform": uniform[row * N : (row + 1) * N]})
        assert alone.candidate_completions[0] == together.candidate_completions[row]
        assert alone.chosen[0] == together.chosen[row]


def test_several_choices_of_a_prompt_are_made_apart():
    out = chosen(tiny_causal_lm(), letters, num_return_sequences=3)
    assert out.candidates.shape[:2] == (3 * len(PROMPTS), N)
    assert len({tuple(text) for text in out.candidate_completions[:3]}) == 3
    assert (out.sequences[:3, : asked(tiny_causal_lm())["input_ids"].shape[1]] == out.sequences[0, :6]).all()


def three_words() -> tuple[object, dict[tuple[int, ...], float]]:
    """A causal LM of three words and an end, and the probability of every text of at most two tokens after word 4."""
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=5, n_embd=16, n_layer=1, n_head=2, n_positions=8, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        bos_token_id=1, eos_token_id=1, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    table: dict[tuple[int, ...], float] = {}
    with torch.no_grad():
        for first, second in itertools.product(range(5), repeat=2):
            logits = model(input_ids=torch.tensor([[4, first]])).logits[0].double()
            one, two = (row.softmax(-1) for row in logits)
            table[(first,) if first == 1 else (first, second)] = float(one[first] * (1 if first == 1 else two[second]))
    assert sum(table.values()) == pytest.approx(1.0)
    return model, table


def test_what_is_chosen_has_the_distribution_of_the_largest_of_n():
    """P(y) = (F(r)^n - F(below r)^n) p(y) / p(r): by enumeration, with rewards that several texts share."""
    model, table = three_words()
    tokenizer = tiny_tokenizer(["x", "y"])

    def reward(completions, completion_ids, **columns):
        return [None if ids[0] == 0 else float(sum(ids) % 4) for ids in completion_ids]

    worth = dict(zip(table, reward(table, [list(text) for text in table]), strict=True))
    level = {text: float("-inf") if score is None else score for text, score in worth.items()}
    assert 1 < len(set(level.values())) < len(level)
    n, rows = 3, 5_000
    expected = {}
    for text, share in table.items():
        same = sum(p for other, p in table.items() if level[other] == level[text])
        below = sum(p for other, p in table.items() if level[other] < level[text])
        expected[text] = ((same + below) ** n - below**n) * share / same
    config = generation_config_for(model, tokenizer, max_new_tokens=2)
    ids = torch.full((rows, 1), 4)
    torch.manual_seed(0)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config,
        custom_generate=BestOfN(reward, tokenizer, n), prompts=["x"] * rows,
    )  # fmt: skip
    written = [tuple(row[:1] if row[0] == 1 else row) for row in out[:, 1:].tolist()]
    counts = [written.count(text) for text in table]
    assert sum(counts) == rows
    assert chisquare(counts, [rows * expected[text] for text in table]).pvalue > 0.01
    assert chisquare(counts, [rows * table[text] for text in table]).pvalue < 1e-6, "no other than plain sampling"


def test_what_cannot_work_is_refused():
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    for n in (0, True, 2.5):
        with pytest.raises(ConfigError, match="whole number of 1 or more"):
            BestOfN(letters, tokenizer, n)
    with pytest.raises(ConfigError, match="all the same without sampling"):
        chosen(model, letters, temperature=0)
    with pytest.raises(ConfigError, match="num_beams=2 searches"):
        chosen(model, letters, num_beams=2)
    with pytest.raises(DataError, match=r"completes 4 prompts, but got \{'mood': 3\}"):
        chosen(model, letters, more={"columns": {"mood": [1, 2, 3]}})
    inputs = asked(model)
    with pytest.raises(DataError, match=r"completes 4 prompts, but got \{'prompts': 1\}"):
        model.generate(**inputs, custom_generate=BestOfN(letters, tokenizer), prompts=["it"])
    embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(DataError, match="no prompts that a reward could read"):
        model.generate(inputs_embeds=embedded, **inputs, custom_generate=BestOfN(letters, tokenizer))
