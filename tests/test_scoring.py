"""Sampling and scoring agree, whatever the kind of generator and however prompts are padded."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GenerationConfig,
    GraniteConfig,
)

from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import ModelError
from alignkit.models.reference import reference_of
from alignkit.models.scoring import add_scoring, score_completions
from alignkit.models.tiny import CAUSAL_KINDS, SEQ2SEQ_KINDS, tiny_causal_lm, tiny_seq2seq
from alignkit.models.value_head import attach_value_head, save_value_head, split_head

KINDS = [*CAUSAL_KINDS, *SEQ2SEQ_KINDS]


def generator(kind: str, separate_critic: bool = False):
    """A tiny model whose distributions are far from uniform, with a value head that says something."""
    model = tiny_seq2seq(kind) if kind in SEQ2SEQ_KINDS else tiny_causal_lm(kind)
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.ndim > 1 else 1)
    attach_value_head(model, separate_critic=separate_critic)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.value_head.linear.weight)
    add_scoring(model)
    return model


def left_padded(lengths: list[int], width: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 30, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, width - length :] = 1
    return ids * mask, mask


def sample(model, ids, mask, temperature=0.7, tokens=9, **more):
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=True, temperature=temperature, eos_token_id=1, pad_token_id=0, **more
    )
    return SamplingDecoder(with_values=not hasattr(model, "critic"))(model, ids, mask, config)


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_prob_seen_while_sampling_is_the_one_scored_later(kind):
    model = generator(kind)
    ids, mask = left_padded([7, 5, 4, 1, 6])
    torch.manual_seed(3)
    made = sample(model, ids, mask)
    scored = score_completions(
        model, ids, mask, made.completion_ids, made.completion_mask, temperature=0.7, values="full"
    )
    torch.testing.assert_close(made.log_probs, scored["log_probs"], rtol=0, atol=1e-5)
    torch.testing.assert_close(made.values, scored["values"], rtol=1e-4, atol=1e-4)
    assert made.log_probs.std() > 0.1  # not a uniform distribution in which everything agrees


@pytest.mark.parametrize("kind", KINDS)
def test_left_padding_changes_nothing(kind):
    """Every row of a padded batch scores as it does alone, without padding."""
    model = generator(kind)
    lengths = [7, 2, 5]
    ids, mask = left_padded(lengths)
    completion = torch.randint(3, 30, (3, 6), generator=torch.Generator().manual_seed(1))
    kept = (torch.arange(6)[None] < torch.tensor([6, 3, 1])[:, None]).long()
    together = score_completions(model, ids, mask, completion, kept, values="full")
    for row, length in enumerate(lengths):
        alone = score_completions(
            model, ids[row : row + 1, 7 - length :], mask[row : row + 1, 7 - length :],
            completion[row : row + 1, : kept[row].sum()], kept[row : row + 1, : kept[row].sum()], values="full",
        )  # fmt: skip
        for key in ("log_probs", "entropy", "values"):
            torch.testing.assert_close(
                together[key][row, : kept[row].sum()], alone[key][0], rtol=1e-4, atol=2e-5, msg=lambda m, k=key: k + m
            )
            assert together[key][row, kept[row].sum() :].abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_models_own_logits(kind):
    """Independent recomputation from `model(...).logits`, one sequence at a time."""
    model = generator(kind)
    prompt, completion = torch.tensor([[5, 9, 4]]), torch.tensor([[7, 8, 1]])
    ones = torch.ones_like(prompt)
    got = score_completions(model, prompt, ones, completion, torch.ones_like(completion), temperature=2.0)
    with torch.no_grad():
        if kind in SEQ2SEQ_KINDS:
            shifted = torch.tensor([[0, 7, 8]])
            logits = model(input_ids=prompt, attention_mask=ones, decoder_input_ids=shifted).logits
        else:
            logits = model(input_ids=torch.cat([prompt, completion], 1)).logits[:, 2:5]
    log_p = (logits / 2.0).log_softmax(-1)
    torch.testing.assert_close(got["log_probs"], log_p.gather(-1, completion[..., None])[..., 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["entropy"], -(log_p.exp() * log_p).sum(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_what_follows_the_end_carry_no_gradient(kind):
    """Other ids at padded places, and in any number: the gradient of every weight stays the same to the bit's noise."""
    model = generator(kind)
    ids, mask = left_padded([7, 3])
    completion = torch.tensor([[5, 6, 1, 0, 0], [7, 8, 9, 10, 1]])
    kept = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])

    def gradients(prompt_ids, completion_ids):
        model.zero_grad()
        scores = score_completions(model, prompt_ids, mask, completion_ids, kept, values="full")
        (scores["log_probs"].sum() + scores["values"].sum() + scores["entropy"].sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    clean = gradients(ids, completion)
    dirty = gradients(ids.masked_fill(mask == 0, 17), completion.masked_fill(kept == 0, 23))
    assert clean.keys() == dirty.keys()
    for name in clean:
        torch.testing.assert_close(clean[name], dirty[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_completions_end_at_the_first_end_token_even_if_it_is_also_the_padding(lengths, seed):
    model = generator("llama")
    ids, mask = left_padded(lengths, seed=seed)
    torch.manual_seed(seed)
    config = GenerationConfig(max_new_tokens=12, do_sample=True, temperature=1.5, eos_token_id=1, pad_token_id=1)
    made = SamplingDecoder()(model, ids, mask, config)
    for tokens, length in zip(made.ids(), made.lengths().tolist(), strict=True):
        assert len(tokens) == length >= 1
        assert 1 not in tokens[:-1]
        assert tokens[-1] == 1 or length == made.completion_ids.shape[1]


def test_the_log_density_is_that_of_the_truncated_distribution():
    model = generator("gpt2")
    ids, mask = left_padded([7, 5])
    torch.manual_seed(0)
    made = sample(model, ids, mask, top_k=2, top_p=1.0)
    assert (made.log_density > (made.log_probs * made.completion_mask).sum(1)).all()
    torch.manual_seed(0)
    whole = sample(model, ids, mask, top_k=0, top_p=1.0)
    torch.testing.assert_close(whole.log_density, whole.log_probs.sum(1), rtol=1e-5, atol=1e-5)


def test_sampling_follows_the_models_distribution():
    """Frequencies of 20,000 first tokens against the probabilities, by a chi-square test."""
    from scipy.stats import chisquare

    model = generator("gpt2")
    prompt = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = model(input_ids=prompt).logits[0, -1].div(0.7).softmax(-1)
    torch.manual_seed(0)
    made = sample(model, prompt.expand(20_000, -1), torch.ones(20_000, 3, dtype=torch.long), tokens=1)
    counts = torch.bincount(made.completion_ids[:, 0], minlength=len(expected)).double()
    often = expected * 20_000 > 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([expected[often], expected[~often].sum()[None]]).double() * 20_000
    keep = wanted > 0
    assert chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", *SEQ2SEQ_KINDS])
@pytest.mark.parametrize("separate_critic", [False, True])
def test_the_value_head_survives_saving_and_loading(kind, separate_critic, tmp_path):
    model = generator(kind, separate_critic)
    head, policy = split_head(model.state_dict())
    model.save_pretrained(tmp_path, state_dict=policy)
    save_value_head(head, str(tmp_path))
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    attach_value_head(loaded, separate_critic=separate_critic, source=str(tmp_path))
    add_scoring(loaded)
    ids, mask = left_padded([7, 4])
    completion = torch.full((2, 3), 9)
    batch = (ids, mask, completion, torch.ones_like(completion))
    before, after = (score_completions(m, *batch, values="full")["values"] for m in (model, loaded.eval()))
    assert torch.equal(before, after)


def test_a_value_head_of_another_kind_is_refused(tmp_path):
    save_value_head(split_head(generator("gpt2").state_dict())[0], str(tmp_path))
    with pytest.raises(ModelError, match="separate_critic"):
        attach_value_head(tiny_causal_lm("gpt2"), separate_critic=True, source=str(tmp_path))


def test_values_are_asked_only_of_a_head_on_the_policys_own_trunk():
    ids, mask = left_padded([7])
    config = GenerationConfig(max_new_tokens=2, do_sample=True, eos_token_id=1, pad_token_id=0)
    for model, has in ((tiny_causal_lm("gpt2"), "no value head"), (generator("gpt2", True), "a separate critic")):
        with pytest.raises(ModelError, match=has):
            SamplingDecoder(with_values=True)(model, ids, mask, config)


def test_without_reference_and_adapter_there_is_nothing_to_compare_with():
    with (
        pytest.raises(ModelError, match="pass ref_model, or train with peft_config"),
        reference_of(tiny_seq2seq(), None),
    ):
        pass


def test_detached_values_leave_the_trunk_alone():
    model = generator("gpt2")
    ids, mask = left_padded([7])
    completion = torch.tensor([[4, 5]])
    scores = score_completions(model, ids, mask, completion, torch.ones_like(completion), values="detached")
    scores["values"].sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"value_head.linear.weight", "value_head.linear.bias"}


def test_families_whose_logits_are_more_than_a_linear_map_go_their_own_way():
    model = tiny_causal_lm("llama")
    original = model.forward

    def capped(*args, **kwargs):
        outputs = original(*args, **kwargs)
        outputs.logits = torch.tanh(outputs.logits / 0.1) * 0.1
        return outputs

    model.forward = capped
    add_scoring(model)
    assert not model._alignkit_plain_head
    ids, mask = left_padded([7])
    completion = torch.tensor([[4, 5]])
    got = score_completions(model, ids, mask, completion, torch.ones_like(completion))["log_probs"]
    logits = capped(input_ids=torch.cat([ids, completion], 1)).logits[:, 6:8]
    torch.testing.assert_close(got, logits.log_softmax(-1).gather(-1, completion[..., None])[..., 0])


OWN_HEADS = {
    "gemma2": (Gemma2Config, {"head_dim": 8, "final_logit_softcapping": 0.5}),
    "granite": (GraniteConfig, {"logits_scaling": 4.0}),
    "cohere": (CohereConfig, {"logit_scale": 0.25}),
}


def model_with_a_head_of_its_own(family: str, spread: float = 1.0, **settings):
    """A tiny random model of a family that scales or caps its logits."""
    kind, own = OWN_HEADS[family]
    size = dict(vocab_size=30, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = kind(**size, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=1, **{**own, **settings})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(spread if parameter.ndim > 1 else 1)
    return model


@pytest.mark.parametrize("spread", [0.1, 8.0])
@pytest.mark.parametrize("family", OWN_HEADS)
def test_a_head_that_scales_or_caps_is_noticed_however_small_its_logits(family, spread):
    """At initialisation all logits are so near 0 that a cap of 30, or a factor, hardly shows on them."""
    model = model_with_a_head_of_its_own(family, spread)
    add_scoring(model)
    assert not model._alignkit_plain_head


def test_gemmas_usual_cap_is_noticed_and_its_absence_too():
    for cap, plain in ((30.0, False), (None, True)):
        model = model_with_a_head_of_its_own("gemma2", final_logit_softcapping=cap)
        add_scoring(model)
        assert model._alignkit_plain_head is plain


@pytest.mark.parametrize("family", OWN_HEADS)
def test_families_with_a_head_of_their_own_are_scored_as_they_sample(family):
    model = model_with_a_head_of_its_own(family, spread=8.0)
    add_scoring(model)
    ids, mask = left_padded([7, 5, 4, 1, 6])
    torch.manual_seed(3)
    config = GenerationConfig(max_new_tokens=9, do_sample=True, temperature=0.7, eos_token_id=1, pad_token_id=0)
    made = SamplingDecoder()(model, ids, mask, config)
    scored = score_completions(model, ids, mask, made.completion_ids, made.completion_mask, temperature=0.7)
    torch.testing.assert_close(made.log_probs, scored["log_probs"], rtol=0, atol=1e-5)
    assert made.log_probs.std() > 0.1
    row, width = slice(0, 1), int(made.lengths()[0])  # the row without padding, from the model's own logits
    whole = torch.cat([ids[row], made.completion_ids[row, :width]], 1)
    with torch.no_grad():
        log_p = (model(input_ids=whole).logits[:, 6:-1] / 0.7).log_softmax(-1)
    own = log_p.gather(-1, made.completion_ids[row, :width, None])[..., 0]
    torch.testing.assert_close(scored["log_probs"][row, :width], own, rtol=0, atol=1e-5)


def test_a_head_that_an_adapter_wraps_afterwards_is_scored_with_the_adapter():
    """What PEFT trains of the head must count: the plain weight alone is the model without it."""
    model = tiny_causal_lm("llama")
    add_scoring(model)
    assert model._alignkit_plain_head
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    ids, mask = left_padded([7])
    completion = torch.tensor([[4, 5]])
    got = score_completions(wrapped, ids, mask, completion, torch.ones_like(completion))["log_probs"]
    logits = wrapped(input_ids=torch.cat([ids, completion], 1)).logits[:, 6:8]
    torch.testing.assert_close(got, logits.log_softmax(-1).gather(-1, completion[..., None])[..., 0])


def test_scoring_can_be_copied_only_before_it_is_added():
    """A copy taken first scores with its own weights; that is why the reference is copied first."""
    model = tiny_causal_lm("gpt2")
    twin = copy.deepcopy(model)
    add_scoring(model)
    add_scoring(twin)
    twin.transformer.wte.weight.data.mul_(2)
    ids, mask = left_padded([7])
    completion = torch.tensor([[4, 5]])
    batch = (ids, mask, completion, torch.ones_like(completion))
    assert not torch.equal(score_completions(model, *batch)["log_probs"], score_completions(twin, *batch)["log_probs"])


@pytest.mark.parametrize("kind", SEQ2SEQ_KINDS)
def test_an_encoder_reads_a_padded_prompt_as_it_reads_it_alone(kind):
    """BART counts places: its greedy completions must not depend on the rows beside them."""
    model = generator(kind)
    lengths = [7, 2, 5]
    ids, mask = left_padded(lengths)
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    together = SamplingDecoder()(model, ids, mask, config).completion_ids
    for row, length in enumerate(lengths):
        alone = model.generate(input_ids=ids[row : row + 1, 7 - length :], generation_config=config)[0, 1:]
        assert together[row, : len(alone)].tolist() == alone.tolist()
