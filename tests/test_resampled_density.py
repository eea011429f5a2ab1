"""How likely resampling makes a text: against all sets of candidates, and row by row through evaluation."""

import itertools
import math

import pytest
import torch

from alignkit import BestOfN, Resample
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.proposal import SearchDecoder
from alignkit.decoding.resample import log_density_ratio
from alignkit.errors import DataError, RewardError
from alignkit.held_out import generate_rows
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.trainers.evaluation import summarise
from tests.test_best_of_n import three_words
from tests.test_held_out import EXAMPLES
from tests.test_resample import weight_of

N = 4


def log_of(weights) -> torch.Tensor:
    return torch.tensor(weights, dtype=torch.float64).log()


def expected_ratios(probabilities: list[float], weights: list[float], n: int) -> list[float]:
    """E[log_density_ratio.exp()] of each text, over all sets of n candidates."""
    sets = list(itertools.product(range(len(weights)), repeat=n))
    candidates = log_of([[weights[i] for i in one] for one in sets])
    chances = torch.tensor([math.prod(probabilities[i] for i in one) for one in sets], dtype=torch.float64)
    return [
        float((chances * log_density_ratio(log_of([weight]).expand(len(sets)), candidates).exp()).sum())
        for weight in weights
    ]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("reward_as", "alpha"), [("probability", 1.0), ("odds", 1.0), ("exponential", 2.0)])
def test_its_mean_over_all_candidates_is_the_density_itself(reward_as, alpha, n):
    """q_n(y) / p(y) = sum over the others' texts of p(others) n w(y) / (w(y) + their weights); some texts weigh 0."""
    _, table = three_words()
    chances = list(table.values())
    weights = [weight_of(text, reward_as, alpha) for text in table]
    assert 0 in weights
    wanted = []
    for weight in weights:
        total = 0.0
        for others in itertools.product(range(len(weights)), repeat=n - 1):
            rest = sum(weights[i] for i in others)
            share = n * weight / (weight + rest) if weight + rest else 1.0
            total += math.prod(chances[i] for i in others) * share
        wanted.append(total)
    found = expected_ratios(chances, weights, n)
    assert found == pytest.approx(wanted, rel=1e-9)
    assert sum(p * ratio for p, ratio in zip(chances, found, strict=True)) == pytest.approx(1.0)


def test_with_the_datas_odds_the_datas_texts_become_likelier_with_every_candidate():
    """Cross entropy of the data falls from that of p towards the data's own entropy."""
    policy, data = [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]
    weights = [d / p for d, p in zip(data, policy, strict=True)]
    nats = []
    for n in (1, 2, 4, 6):
        ratios = expected_ratios(policy, weights, n)
        nats.append(-sum(d * math.log(p * ratio) for d, p, ratio in zip(data, policy, ratios, strict=True)))
    entropy = -sum(d * math.log(d) for d in data)
    assert nats[0] == pytest.approx(-sum(d * math.log(p) for d, p in zip(data, policy, strict=True)))
    assert nats == sorted(nats, reverse=True) and entropy < nats[-1] < entropy + (nats[0] - entropy) / 4


@pytest.mark.parametrize("seed", range(20))
def test_what_it_is_whatever_the_weights(seed):
    torch.manual_seed(seed)
    n = 1 + seed % 6
    own, candidates = 30 * torch.randn(8, dtype=torch.float64), 30 * torch.randn(8, n, dtype=torch.float64)
    ratios = log_density_ratio(own, candidates)
    assert (ratios <= math.log(n) + 1e-12).all()
    torch.testing.assert_close(log_density_ratio(own + 7, candidates + 7), ratios)  # weights know no unit
    torch.testing.assert_close(log_density_ratio(own, candidates.flip(1)), ratios)  # nor candidates an order
    assert (log_density_ratio(own + 1, candidates) >= ratios).all()
    if n == 1:
        assert not ratios.any()


class Watched:
    """A reward of everything that it is given, by arithmetic of its own, which keeps what it was asked."""

    def __init__(self, zero: bool):
        self.zero, self.asked = zero, []

    def __call__(self, prompts, completions, completion_ids, mood, **columns):
        self.asked.append(list(zip(prompts, completions, map(tuple, completion_ids), mood, strict=True)))
        return [self.worth(*one) for one in self.asked[-1]]

    def worth(self, prompt: str, completion: str, ids: tuple[int, ...], mood: int) -> float | None:
        value = (7 * len(prompt) + 3 * len(completion) + sum(ids) + mood) % 11
        if self.zero:
            return None if value == 10 else value % 5 / 10
        return (value + 1) / 20


@pytest.mark.parametrize("zero", [True, False], ids=["some weigh nothing", "all weigh"])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("make", [tiny_causal_lm, tiny_seq2seq])
def test_every_row_says_it_of_its_own_reference(make, temperature, zero):
    model, tokenizer, watched = make().eval(), tiny_tokenizer(), Watched(zero)
    config = generation_config_for(model, tokenizer, max_new_tokens=8, temperature=temperature)
    examples = [{**example, "mood": 3 * place} for place, example in enumerate(EXAMPLES)]
    decoder = SearchDecoder(Resample(watched, tokenizer, n=N, alpha=2.0))
    given = {"generation_config": config, "with_kl": False, "batch_size": 3, "decoder": decoder}
    rows = generate_rows(model, tokenizer, examples, score_references=True, **given)
    candidates, references = {}, {}
    for call in watched.asked:
        for one in call:
            (candidates if len(call) in (3 * N, N) else references).setdefault(one[0], []).append(one)
    for example, row in zip(examples, rows, strict=True):
        if example["reference"] is None:
            assert "reference_nll_resampled" not in row and example["prompt"] not in references
            continue
        (reference,) = references[example["prompt"]]
        ids = [*tokenizer(text=example["reference"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert reference[2:] == (tuple(ids[:8]), example["mood"])
        drawn = [(watched.worth(*one) or 0.0) ** 2 for one in candidates[example["prompt"]]]
        own = (watched.worth(*reference) or 0.0) ** 2
        shares = []
        for place in range(N):
            total = own + sum(drawn) - drawn[place]
            shares.append(N * own / total if total else 1.0)
        ratio = sum(shares) / N
        expected = row["reference_nll_sampled"] - math.log(ratio) if ratio else math.inf
        assert row["reference_nll_resampled"] == pytest.approx(expected, rel=1e-6)
    known = [row for row in rows if "reference_nll_resampled" in row]
    nats = sum(row["reference_nll_resampled"] for row in known) / sum(row["reference_tokens"] for row in known)
    assert len(known) == 3
    never = sum(row["reference_nll_resampled"] == math.inf for row in known)
    figures = summarise(rows, [])
    assert figures["reference_undrawn"] == pytest.approx(never / 3)
    assert ("reference_perplexity_resampled" in figures) == (never == 0)
    if not never:
        assert figures["reference_perplexity_resampled"] == pytest.approx(math.exp(nats))
    torch.manual_seed(0)
    plain = generate_rows(model, tokenizer, examples, **given)
    assert [row["completion"] for row in rows] == [row["completion"] for row in plain]


def figures_by(decoder, examples=EXAMPLES, **sampling):
    model, tokenizer = tiny_causal_lm().eval(), tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    config = generation_config_for(model, tokenizer, max_new_tokens=8, **sampling)
    rows = generate_rows(
        model, tokenizer, examples, generation_config=config, with_kl=False, decoder=decoder, score_references=True
    )
    assert "reference_perplexity" in summarise(rows, [])
    return summarise(rows, [])


def length(completions, **columns):
    return [min(1 + len(text), 90) / 100 for text in completions]


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}, {"repetition_penalty": 1.5}], ids=str)
def test_candidates_of_a_cut_policy_say_nothing_of_the_whole_one(cut):
    decoder = SearchDecoder(Resample(length, tiny_tokenizer(), n=N))
    assert "reference_perplexity_resampled" in figures_by(decoder)
    assert "reference_perplexity_resampled" not in figures_by(decoder, **cut)


def test_only_what_draws_by_weights_has_one():
    decoder = SearchDecoder(BestOfN(length, tiny_tokenizer(), N))
    assert "reference_perplexity_resampled" not in figures_by(decoder)


def test_a_decoder_around_it_hands_it_on():
    inside = SearchDecoder(Resample(length, tiny_tokenizer(), n=N))
    assert figures_by(lambda *arguments, **more: inside(*arguments, **more)) == figures_by(inside)


def test_messages_are_read_as_messages():
    seen = set()

    def spoken(completions, **columns):
        seen.update(turn["role"] for completion in completions for turn in completion)
        return [min(1 + len(completion[0]["content"]), 90) / 100 for completion in completions]

    talk = [{"prompt": [{"role": "user", "content": "it is"}], "reference": [{"role": "assistant", "content": " bad"}]}]
    figures = figures_by(SearchDecoder(Resample(spoken, tiny_tokenizer(), n=N)), talk)
    assert figures["reference_perplexity_resampled"] > 1 and seen == {"assistant"}


def test_what_cannot_be_computed_says_why():
    def sure_of_people(completions, completion_ids, **columns):
        return [1.0 if len(completion_ids) == len(EXAMPLES) - 1 else 0.5 for _ in completions]

    decoder = SearchDecoder(Resample(sure_of_people, tiny_tokenizer(), n=N, reward_as="odds"))
    with pytest.raises(
        RewardError, match=r"held-out references \(evaluation\.references\): reward .* which has no odds"
    ):
        figures_by(decoder)
    with pytest.raises(DataError, match="got 1 texts and 3 sets of candidates"):
        decoder.search.log_density_ratios(torch.zeros(3, N), ["a"], ["b"], [[5]], {})
