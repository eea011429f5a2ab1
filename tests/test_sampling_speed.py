"""What makes sampling and scoring fast leaves their results as they were."""

import logging

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, DynamicCache, FalconConfig, GenerationConfig
from transformers.activations import NewGELUActivation
from transformers.cache_utils import DynamicLayer, EncoderDecoderCache
from transformers.utils import logging as host_logging

from alignkit.decoding import sampling
from alignkit.decoding.cache import RoomyLayer, make_roomy, shared_prompts
from alignkit.decoding.sampling import SamplingDecoder, draw
from alignkit.models import faster
from alignkit.models.faster import attention_for, keep_freed_memory
from alignkit.models.scoring import add_scoring, score_completions
from alignkit.models.tiny import CAUSAL_KINDS, tiny_causal_lm
from alignkit.models.value_head import attach_value_head
from alignkit.trainers.rollout import split


def states(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, tokens, 4, generator=generator), torch.randn(2, 3, tokens, 4, generator=generator)


@pytest.mark.parametrize("limit", [1, 40, 1000])
@pytest.mark.parametrize("least", [1, 256])
def test_a_roomy_layer_holds_what_the_hosts_holds(limit, least, monkeypatch):
    monkeypatch.setattr("alignkit.decoding.cache._LEAST_ROOM", least)
    roomy, plain = RoomyLayer(limit), DynamicLayer()
    for step, tokens in enumerate([5, 1, 1, 7, 1, 1]):
        if step == 3:  # what a search does between two tokens
            for layer in (roomy, plain):
                layer.batch_select_indices(torch.tensor([1, 1]))
                layer.crop(-2)
        for ours, theirs in zip(roomy.update(*states(tokens, step)), plain.update(*states(tokens, step)), strict=True):
            assert torch.equal(ours, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length()


def test_a_token_does_not_copy_those_before_it():
    layer = RoomyLayer(100)
    first, _ = layer.update(*states(5, 0))
    second, _ = layer.update(*states(1, 1))
    assert first.data_ptr() == second.data_ptr()


def test_only_empty_plain_layers_are_replaced():
    config = tiny_causal_lm("llama").config
    used, fresh = DynamicCache(config=config), DynamicCache(config=config)
    used.update(*states(3, 0), 0)
    both = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    for cache in (used, fresh, both, None):
        make_roomy(cache, 10)
    assert type(used.layers[0]) is DynamicLayer and type(fresh.layers[0]) is RoomyLayer
    assert type(both.self_attention_cache.layers[0]) is RoomyLayer
    assert type(both.cross_attention_cache.layers[0]) is DynamicLayer


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_equal_prompts_are_read_once_and_answered_as_if_read_each(kind, padded, monkeypatch):
    model = tiny_causal_lm(kind)
    attach_value_head(model)
    torch.nn.init.normal_(model.value_head.linear.weight)
    ids = torch.randint(3, 30, (3, 7), generator=torch.Generator().manual_seed(1)).repeat_interleave(4, 0)
    mask = torch.ones_like(ids)
    if padded:
        mask[4:8, :3] = 0
    config = GenerationConfig(max_new_tokens=6, do_sample=True, eos_token_id=1, pad_token_id=0, top_k=0)
    widths = []
    backbone = getattr(model, model.base_model_prefix)
    backbone.register_forward_pre_hook(
        lambda m, a, k: widths.append(len([*a, k.get("input_ids")][0])), with_kwargs=True
    )

    def sampled():
        torch.manual_seed(0)
        return SamplingDecoder(with_values=True)(model, ids, mask, config)

    once = sampled()
    assert widths[0] == 3 and set(widths[1:]) == {12}
    monkeypatch.setattr(sampling, "shared_prompts", lambda inputs: None)
    each = sampled()
    assert torch.equal(once.completion_ids, each.completion_ids)
    torch.testing.assert_close(once.log_probs, each.log_probs, rtol=0, atol=1e-6)
    torch.testing.assert_close(once.values, each.values, rtol=0, atol=1e-5)


def test_prompts_that_differ_in_padding_only_are_not_shared():
    cache = DynamicCache(config=tiny_causal_lm("llama").config)
    make_roomy(cache, 20)
    ids, mask = torch.full((2, 4), 7), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
    assert shared_prompts(inputs) is None
    same = shared_prompts({**inputs, "attention_mask": torch.ones_like(ids)})
    assert same is not None and same.first.tolist() == [0] and same.copies.tolist() == [0, 0]
    assert shared_prompts({**inputs, "attention_mask": torch.ones_like(ids), "pixels": torch.zeros(2)}) is None
    sections = torch.zeros(2, 2, 4)  # positions of several axes, whose rows are not the first dimension
    assert shared_prompts({**inputs, "attention_mask": torch.ones_like(ids), "position_ids": sections}) is None


def test_rows_that_have_ended_do_not_look_like_a_forgotten_mask():
    """The host drops a mask of ones, and its GPT-2 then takes the padding of ended rows for padding without a mask."""
    model = tiny_causal_lm("gpt2")
    ids = torch.randint(3, 30, (16, 5), generator=torch.Generator().manual_seed(1))
    mask, eos = torch.ones_like(ids), list(range(1, 20))  # rows end early, at different steps
    config = GenerationConfig(max_new_tokens=6, do_sample=True, eos_token_id=eos, pad_token_id=0)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = host_logging.get_logger("transformers.modeling_utils")
    logger.addHandler(handler)
    verbosity = host_logging.get_verbosity()  # a run that was tested before leaves errors only
    host_logging.set_verbosity_warning()
    host_logging.warning_once.cache_clear()
    try:
        made = SamplingDecoder()(model, ids, mask, config)
        assert (made.lengths() < made.lengths().max()).any() and said == []
        with torch.no_grad():
            model(input_ids=torch.tensor([[0, 0, 4]]))
        assert len(said) == 1 and "passing in an `attention_mask`" in said[0], "where it is forgotten, it is said"
    finally:
        logger.removeHandler(handler)
        host_logging.set_verbosity(verbosity)


def test_draws_follow_the_distribution_and_never_take_the_impossible():
    torch.manual_seed(0)
    wanted = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    counts = draw(wanted.expand(40_000, -1)).bincount(minlength=6) / 40_000
    assert (counts[wanted == 0] == 0).all()
    assert (counts - wanted).abs().max() < 5 * (0.25 / 40_000) ** 0.5


@pytest.mark.parametrize("size", [1, 5, 128, 129, 300, 1000])
def test_a_draw_is_where_the_running_sum_passes_the_random_number(size, monkeypatch):
    """Over blocks as over the whole vocabulary; NumPy says where."""
    generator = torch.Generator().manual_seed(size)
    probabilities = torch.rand(200, size, generator=generator) ** 8
    probabilities[torch.rand(200, size, generator=generator) < 0.3] = 0
    probabilities[:, size // 2] += 1e-3
    probabilities /= probabilities.sum(1, keepdim=True)
    uniform = torch.linspace(0, 1 - 1e-12, 200, dtype=torch.float64)[:, None]
    monkeypatch.setattr(torch, "rand", lambda *shape, **more: uniform)
    sums = probabilities.double().numpy().cumsum(1)
    wanted = [np.searchsorted(row, u * row[-1], side="right") for row, u in zip(sums, uniform.numpy(), strict=True)]
    assert draw(probabilities).tolist() == [int(w.item()) for w in wanted]


def test_a_random_number_next_to_one_draws_the_last_possible_token(monkeypatch):
    almost_one = torch.tensor(1.0, dtype=torch.float64).nextafter(torch.tensor(0.0, dtype=torch.float64))
    monkeypatch.setattr(torch, "rand", lambda shape, **how: almost_one.expand(shape))
    thirds = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0], [0.0, 0.1, 0.0, 0.0]])  # rows need not sum to exactly 1
    assert draw(thirds).tolist() == [2, 1]


def test_one_gelu_is_the_seven_operations():
    model = tiny_causal_lm("gpt2")
    ids = torch.arange(3, 11)[None]
    before = model(ids).logits
    assert any(isinstance(module, NewGELUActivation) for module in model.modules())
    add_scoring(model)
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-6)


def gradients(model, dtype) -> list[torch.Tensor]:
    ids = torch.randint(3, 30, (4, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        score_completions(model, ids, mask, ids, mask)["log_probs"].sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_plain_attention_in_bf16_is_nearer_to_float32_than_the_fused_one_or_as_near(monkeypatch):
    model = tiny_causal_lm("llama")
    add_scoring(model)
    exact, plain = gradients(model, torch.float32), gradients(model, torch.bfloat16)
    monkeypatch.setattr(faster, "_SHORT", 0)
    fused = gradients(model, torch.bfloat16)
    assert any(not torch.equal(a, b) for a, b in zip(plain, fused, strict=True)), "the attention was not changed"

    def distance(found):
        return sum((a - b).square().sum() for a, b in zip(found, exact, strict=True)).sqrt()

    size = sum(a.square().sum() for a in exact).sqrt()
    assert distance(plain) < 0.03 * size
    assert distance(plain) < 1.5 * distance(fused)


def test_the_attention_is_chosen_inside_only_and_set_back():
    model = tiny_causal_lm("llama")
    assert model.config._attn_implementation == "sdpa"
    with attention_for(model, 10):
        assert model.config._attn_implementation == "sdpa"  # float32
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad(), attention_for(model, 10):
            assert model.config._attn_implementation == "sdpa"
        with attention_for(model, 1000):
            assert model.config._attn_implementation == "sdpa"
        with attention_for(model, 10):
            assert model.config._attn_implementation == "eager"
        with torch.no_grad(), attention_for(model, 1):  # one token more
            assert model.config._attn_implementation == "eager"
        model.gradient_checkpointing_enable()
        with attention_for(model, 10):
            assert model.config._attn_implementation == "sdpa"
        model.gradient_checkpointing_disable()
    assert model.config._attn_implementation == "sdpa"


def test_attentions_that_are_two_functions_are_not_exchanged():
    """Falcon's ALiBi is added before the division by the width in one, after it in the other."""
    config = FalconConfig(
        vocab_size=37,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=True,
        new_decoder_architecture=False,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert model.config._attn_implementation == "sdpa"
    with torch.autocast("cpu", torch.bfloat16), attention_for(model, 10):
        assert model.config._attn_implementation == "sdpa"


def test_a_decoder_may_sample_while_it_samples():
    model = tiny_causal_lm("gpt2")
    config = GenerationConfig(max_new_tokens=3, do_sample=True, eos_token_id=1, pad_token_id=0, top_k=0)
    ids = torch.full((2, 3), 7)

    def within(module, args, kwargs):
        if not inside:
            inside.append(True)
            SamplingDecoder()(model, ids, torch.ones_like(ids), config)

    inside: list[bool] = []
    model.register_forward_pre_hook(within, with_kwargs=True)
    assert SamplingDecoder()(model, ids, torch.ones_like(ids), config).completion_ids.shape[0] == 2


def test_a_users_own_word_to_malloc_is_respected(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    keep_freed_memory.cache_clear()
    assert not keep_freed_memory()
    keep_freed_memory.cache_clear()


def rollout_of(lengths: list[int], prompts: list[int] | None = None, width: int = 12) -> dict[str, torch.Tensor]:
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    one = torch.ones(len(lengths), 3, dtype=torch.long)
    rows = torch.arange(len(lengths))
    return {
        "row": rows,
        "prompt_ids": (rows if prompts is None else torch.tensor(prompts))[:, None].expand(-1, 3),
        "prompt_mask": one,
        "completion_mask": mask,
        "learn_mask": mask,
    }


def test_rows_of_like_length_share_a_micro_batch_of_the_step_they_were_drawn_for():
    batch = rollout_of([1, 12, 2, 11, 3, 10, 4, 9, 5, 8, 6, 7, 1, 12, 2, 11])
    accelerator = Accelerator(cpu=True)
    micro = split(batch, 4, 2, accelerator, torch.Generator().manual_seed(3))
    drawn = torch.randperm(16, generator=torch.Generator().manual_seed(3)).chunk(2)
    for step in range(2):
        first, second = micro[2 * step : 2 * step + 2]
        assert sorted([*first["row"].tolist(), *second["row"].tolist()]) == sorted(drawn[step].tolist())
        assert first["completion_mask"].sum(1).max() <= second["completion_mask"].sum(1).min()
        tokens = batch["learn_mask"][drawn[step]].sum()
        assert first["token_share"] == second["token_share"] == tokens


def test_completions_of_one_prompt_stay_together():
    lengths, prompts = [3, 9, 1, 5, 8, 2, 7, 4], [0, 1, 2, 3, 0, 1, 2, 3]
    micro = split(rollout_of(lengths, prompts), 2, 2, Accelerator(cpu=True), torch.Generator().manual_seed(3))
    in_order = [part["prompt_ids"][:, 0].tolist() for part in micro]
    assert in_order == [[3, 3, 2, 2], [0, 0, 1, 1]]  # the longest of each: 5, 7, 8, 9
    assert [part["row"].tolist() for part in micro] == [[7, 3, 2, 6], [0, 4, 5, 1]]


def test_without_accumulation_the_order_is_the_drawn_one():
    micro = split(rollout_of([5, 1, 4, 2]), 4, 1, Accelerator(cpu=True), torch.Generator().manual_seed(0))
    drawn = torch.randperm(4, generator=torch.Generator().manual_seed(0)).tolist()
    assert [part["row"].item() for part in micro] == drawn


def test_weights_that_are_nan_give_log_probs_that_say_so():
    model = tiny_causal_lm("llama")
    next(model.parameters()).data.fill_(torch.nan)
    config = GenerationConfig(max_new_tokens=3, do_sample=True, eos_token_id=1, pad_token_id=0, top_k=0)
    made = SamplingDecoder()(model, torch.full((2, 3), 7), torch.ones(2, 3, dtype=torch.long), config)
    assert made.log_probs.isnan().all() and (made.completion_ids < model.config.vocab_size).all()
