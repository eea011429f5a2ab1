"""Proposals: the mixture's density in closed form, enumeration, and that both leave the policy's own figures alone."""

from collections import Counter

import pytest
import torch
from tabular import BEGIN, INITIAL, SEQUENCES, log_probs, tabular_lm, tokenizer
from transformers import GenerationConfig

from alignkit.decoding.enumeration import EnumerationDecoder
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.mixture import MixtureDecoder
from alignkit.errors import ConfigError
from alignkit.models.recurrent.gru_seq2seq import GRUSeq2SeqConfig, GRUSeq2SeqForConditionalGeneration
from alignkit.models.recurrent.lstm import LSTMConfig, LSTMForCausalLM
from alignkit.models.scoring import add_scoring, score_completions
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer


def truncated(logits: torch.Tensor, top_p: float, temperature: float = 1.0) -> torch.Tensor:
    """A table of logits with only each row's nucleus left: written anew, by sorting in plain Python."""
    cut = torch.full_like(logits, -torch.inf)
    for row, probabilities in enumerate((logits / temperature).softmax(-1).tolist()):
        before = 0.0
        for letter in sorted(range(3), key=lambda k: -probabilities[k]):
            if before < top_p:
                cut[row, letter] = logits[row, letter] / temperature
            before += probabilities[letter]
    return cut


def drawn(decoder, rows: int, seed: int = 0):
    model = tabular_lm()
    config = generation_config_for(model, tokenizer(), max_new_tokens=3)
    ids = torch.full((rows, 1), BEGIN)
    torch.manual_seed(seed)
    return decoder(model, ids, torch.ones_like(ids), config)


@pytest.mark.parametrize(
    ("settings", "cut"),
    [
        ({"policy_share": 0.1, "top_p": 0.8}, truncated(INITIAL, 0.8)),
        ({"policy_share": 0.3, "top_p": 0.6, "temperature": 2.0}, truncated(INITIAL, 0.6, 2.0)),
        ({"policy_share": 0.5, "top_k": 1}, truncated(INITIAL, 1e-9)),
        ({"policy_share": 0.0, "temperature": 0.5}, INITIAL / 0.5),
        ({"policy_share": 1.0, "top_p": 0.5}, INITIAL),
    ],
)
def test_the_density_is_that_of_the_mixture_whichever_component_drew(settings, cut):
    made = drawn(MixtureDecoder(**settings), 4000)
    share = settings["policy_share"]
    q = (share * log_probs(INITIAL).exp() + (1 - share) * log_probs(cut).exp()).log()
    numbers = [9 * a + 3 * b + c for a, b, c in made.completion_ids.tolist()]
    torch.testing.assert_close(made.log_density, q[numbers], rtol=0, atol=1e-12)
    torch.testing.assert_close(made.log_probs.sum(1), log_probs(INITIAL)[numbers], rtol=0, atol=1e-12)
    # and it draws with that density: chi-square over the 27 texts, far from its 0.1% bound
    counts = Counter(numbers)
    chi = sum((counts[i] - 4000 * p) ** 2 / (4000 * p) for i, p in enumerate(q.exp().tolist()) if 4000 * p > 5)
    assert chi < 54


def test_what_the_generation_config_forbids_is_forbidden_in_both_components():
    model = tabular_lm()
    config = generation_config_for(model, tokenizer(), max_new_tokens=3, suppress_tokens=[2])
    ids = torch.full((500, 1), BEGIN)
    made = MixtureDecoder(policy_share=0.5, temperature=0.7)(model, ids, torch.ones_like(ids), config)
    assert 2 not in made.completion_ids.unique().tolist()
    allowed = INITIAL.clone()
    allowed[:, 2] = -torch.inf
    q = 0.5 * log_probs(allowed).exp() + 0.5 * log_probs(allowed / 0.7).exp()
    assert float(q.sum()) == pytest.approx(1.0)
    numbers = [9 * a + 3 * b + c for a, b, c in made.completion_ids.tolist()]
    torch.testing.assert_close(made.log_density.exp(), q[numbers])


def lstm():
    torch.manual_seed(0)
    return LSTMForCausalLM(LSTMConfig(vocab_size=33, embedding_size=16, hidden_size=16)).eval()


def gru():
    torch.manual_seed(0)
    return GRUSeq2SeqForConditionalGeneration(GRUSeq2SeqConfig(vocab_size=33)).eval()


@pytest.mark.parametrize("make", [tiny_causal_lm, tiny_seq2seq, lstm, gru], ids=["gpt2", "t5", "lstm", "gru"])
def test_log_probs_seen_while_sampling_are_those_that_scoring_sees(make):
    """With prompts of unequal length, completions that end early, and tokens outside of the nucleus."""
    model, words = make(), tiny_tokenizer()
    encoded = words(["i loved the film", "it"] * 12, return_tensors="pt", padding=True)
    config = generation_config_for(model, words, max_new_tokens=6)
    torch.manual_seed(0)
    decoder = MixtureDecoder(policy_share=0.5, top_p=0.5)
    made = decoder(model, encoded["input_ids"], encoded["attention_mask"], config)
    assert made.log_density.isfinite().all()
    # at least half of p: whatever was drawn, the policy could have drawn
    assert bool((made.log_density >= made.log_probs.sum(1) + torch.tensor(0.5).log() - 1e-4).all())
    add_scoring(model)
    with torch.no_grad():
        scores = score_completions(
            model, made.prompt_ids, made.prompt_mask, made.completion_ids, made.completion_mask, entropy=False
        )
    torch.testing.assert_close(scores["log_probs"], made.log_probs, rtol=0, atol=2e-5)


def test_a_truncated_component_alone_is_refused_and_so_are_bad_numbers():
    with pytest.raises(ConfigError, match="would never be drawn"):
        MixtureDecoder(policy_share=0.0, top_p=0.8)
    with pytest.raises(ConfigError, match=r"policy_share=1.5; expected a number between 0 and 1; temperature=0"):
        MixtureDecoder(policy_share=1.5, temperature=0.0)


def test_all_completions_are_enumerated_once_for_each_prompt():
    made = drawn(EnumerationDecoder(), 54)
    assert [tuple(row) for row in made.completion_ids.tolist()] == SEQUENCES * 2
    torch.testing.assert_close(made.log_density.exp(), torch.full((54,), 1 / 27, dtype=torch.float64))


def test_enumerated_completions_may_end_early():
    model = tabular_lm()
    config = GenerationConfig(max_new_tokens=2, eos_token_id=[0], pad_token_id=4)
    ids = torch.full((7, 1), BEGIN)
    made = EnumerationDecoder()(model, ids, torch.ones_like(ids), config)
    assert sorted(made.ids()) == [[0], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]]


def test_a_space_that_is_too_large_or_does_not_fit_is_refused_with_the_number():
    with pytest.raises(ConfigError, match="make 27 completions, more than the 26"):
        drawn(EnumerationDecoder(limit=26), 27)
    with pytest.raises(ConfigError, match="in 27 consecutive rows of one process, and got 28"):
        drawn(EnumerationDecoder(), 28)
    config = GenerationConfig(max_new_tokens=30, eos_token_id=1)
    with pytest.raises(ConfigError, match=r"make 5e\+46 completions, more than the 4096"):
        EnumerationDecoder().size(tiny_causal_lm(), config)
