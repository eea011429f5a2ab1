"""A prompt that several completions share is read once, and nothing but the time tells."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from alignkit.models import scoring
from alignkit.models.scoring import add_scoring, score_completions
from alignkit.models.shared_prompts import equal_rows
from alignkit.models.tiny import CAUSAL_KINDS, tiny_causal_lm
from alignkit.models.value_head import attach_value_head

PROMPTS, COPIES, WIDTH, TOKENS = 3, 4, 7, 5


def taught(kind: str, adapter: bool = False):
    model = tiny_causal_lm(kind)
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.ndim > 1 else 1)  # distributions that are far from uniform
    if adapter:
        targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]
        model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    base = model.get_base_model() if adapter else model
    attach_value_head(base)
    torch.nn.init.normal_(base.value_head.linear.weight, generator=torch.Generator().manual_seed(0))
    add_scoring(model)
    return model


def batch(shuffled: bool = False) -> tuple[torch.Tensor, ...]:
    """Prompts padded on the left, one of them as the other but for its padding; completions padded on the right."""
    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 30, (PROMPTS, WIDTH), generator=draw)
    prompts[2] = prompts[1]
    mask = torch.ones_like(prompts)
    mask[1, :3] = 0
    prompts, mask = prompts.repeat_interleave(COPIES, 0), mask.repeat_interleave(COPIES, 0)
    completions = torch.randint(3, 30, (len(prompts), TOKENS), generator=draw)
    lengths = torch.randint(1, TOKENS + 1, (len(prompts), 1), generator=draw)
    kept = (torch.arange(TOKENS)[None] < lengths).long()
    order = torch.randperm(len(prompts), generator=draw) if shuffled else torch.arange(len(prompts))
    return tuple(some[order] for some in (prompts, mask, completions, kept))


def tokens_read(model) -> list[int]:
    """How many tokens each of the trunk's forwards is given, as a list that fills."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen: list[int] = []
    trunk = getattr(base, base.base_model_prefix)
    trunk.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True)
    return seen


def scored(model, rows):
    """Scores of a batch, and the gradient of something that uses all of them."""
    model.zero_grad()
    scores = score_completions(model, *rows, temperature=0.7, values="full")
    kept = rows[3].bool()
    ((scores["log_probs"] * torch.linspace(-1, 1, kept.numel()).view(kept.shape))[kept].sum()
     + scores["entropy"][kept].sum() + scores["values"][kept].pow(2).sum()).backward()  # fmt: skip
    return scores, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_scores_and_gradients_are_those_of_every_row_read_whole(kind, adapter, shuffled, monkeypatch):
    model, rows = taught(kind, adapter), batch(shuffled)
    seen = tokens_read(model)
    once, grown = scored(model, rows)
    assert seen == [PROMPTS * WIDTH, PROMPTS * COPIES * (TOKENS - 1)]
    seen.clear()
    monkeypatch.setattr(scoring, "predicting_states", lambda *given: None)
    whole, expected = scored(model, rows)
    assert seen == [PROMPTS * COPIES * (WIDTH + TOKENS - 1)]
    for name, value in whole.items():
        torch.testing.assert_close(once[name], value, rtol=1e-5, atol=2e-5)
    assert grown.keys() == expected.keys() and len(grown) > 2
    for name, gradient in expected.items():
        torch.testing.assert_close(grown[name], gradient, rtol=0, atol=1e-5 * max(1.0, float(gradient.abs().max())))


def test_completions_of_one_token_need_the_prompt_alone():
    model, rows = taught("llama"), batch()
    short = (rows[0], rows[1], rows[2][:, :1], rows[3][:, :1])
    seen = tokens_read(model)
    got = score_completions(model, *short)["log_probs"]
    assert seen == [PROMPTS * WIDTH]
    torch.testing.assert_close(got, score_completions(model, *rows)["log_probs"][:, :1], rtol=0, atol=1e-5)


def test_few_copies_are_read_whole():
    model, rows = taught("gpt2"), batch()
    some = torch.tensor([0, 1, 4, 8])  # three prompts, four rows
    seen = tokens_read(model)
    score_completions(model, *(t[some] for t in rows))
    assert seen == [4 * (WIDTH + TOKENS - 1)]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_recomputed_activations_leave_no_room_for_a_cache(kind, gradients):
    model, rows = taught(kind), batch()
    whole, _ = scored(model, rows)
    model.gradient_checkpointing_enable()
    model.train()
    seen = tokens_read(model)
    with torch.set_grad_enabled(gradients):
        again = score_completions(model, *rows, temperature=0.7)
    assert seen == [PROMPTS * COPIES * (WIDTH + TOKENS - 1)]
    torch.testing.assert_close(again["log_probs"], whole["log_probs"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_length_need_the_whole_text(kind):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = LlamaConfig(
        vocab_size=37, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, rope_parameters=rope,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    add_scoring(model)
    rows = batch()
    seen = tokens_read(model)
    together = score_completions(model, *rows)["log_probs"]
    assert seen == [PROMPTS * COPIES * (WIDTH + TOKENS - 1)]
    one = tuple(t[:1] for t in rows)
    torch.testing.assert_close(score_completions(model, *one)["log_probs"], together[:1], rtol=0, atol=1e-5)


def test_a_model_with_a_sliding_window_reads_every_row_whole():
    config = Gemma2Config(
        vocab_size=37, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=4, final_logit_softcapping=None, attn_logit_softcapping=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    add_scoring(model)
    assert not model._alignkit_prompts_once
    seen = tokens_read(model)
    score_completions(model, *batch())
    assert seen == [PROMPTS * COPIES * (WIDTH + TOKENS - 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=8))
def test_groups_are_the_equal_rows(rows):
    ids = torch.tensor([[5, a, 6] for a, _ in rows])
    mask = torch.tensor([[b, 1, 1] for _, b in rows])
    shared = equal_rows(ids, mask)
    if shared is None:
        assert len(set(rows)) == len(rows)
        return
    assert len(shared.first) == len(set(rows)) < len(rows)
    assert [rows[shared.first[group]] for group in shared.copies.tolist()] == rows
