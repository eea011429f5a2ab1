"""Recurrent generators: against an independent unrolled computation, and in the places where transformers serve."""

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from alignkit import PPOConfig, PPOTrainer, ReinforceConfig, ReinforceTrainer
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.models.recurrent import (
    GRUSeq2SeqConfig,
    GRUSeq2SeqForConditionalGeneration,
    LSTMConfig,
    LSTMForCausalLM,
)
from alignkit.models.scoring import add_scoring, score_completions
from alignkit.models.tiny import tiny_tokenizer
from alignkit.models.value_head import attach_value_head

KINDS = ["gru", "lstm"]
VOCABULARY = 37


def made(kind: str, layers: int = 2, seed: int = 0, **more):
    torch.manual_seed(seed)
    if kind == "gru":
        config = GRUSeq2SeqConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=layers, **more)
        model = GRUSeq2SeqForConditionalGeneration(config)
    else:
        config = LSTMConfig(vocab_size=VOCABULARY, embedding_size=8, hidden_size=16, num_hidden_layers=layers, **more)
        model = LSTMForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.mul_(3)  # distributions that are far from uniform
    return model.eval()


def padded(side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (4, 6), generator=generator)
    lengths = torch.tensor([6, 3, 1, 4])[:, None]
    places = torch.arange(6)[None]
    mask = (places >= 6 - lengths if side == "left" else places < lengths).long()
    return ids * mask, mask


def gru_cell(x, h, w_ih, w_hh, b_ih, b_hh):
    """One step by the formulas of Cho et al. (2014), as torch orders the gates."""
    i_r, i_z, i_n = (w_ih @ x + b_ih).chunk(3)
    h_r, h_z, h_n = (w_hh @ h + b_hh).chunk(3)
    r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
    return (1 - z) * torch.tanh(i_n + r * h_n) + z * h


def weights_of(network, layer: int, suffix: str = "") -> list[torch.Tensor]:
    return [getattr(network, f"{kind}_l{layer}{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def unrolled_logits(model, prompt: list[int], fed: list[int]) -> torch.Tensor:
    """Eqs. 1 to 5 for one row without padding, a token and a layer at a time."""
    table, width = model.encoder.embed_tokens.weight, model.config.hidden_size
    inputs = [table[token] for token in prompt]
    for layer in range(model.config.num_hidden_layers):
        forth, back = [], []
        h = torch.zeros(width)
        for x in inputs:
            h = gru_cell(x, h, *weights_of(model.encoder.gru, layer))
            forth.append(h)
        h = torch.zeros(width)
        for x in reversed(inputs):
            h = gru_cell(x, h, *weights_of(model.encoder.gru, layer, "_reverse"))
            back.insert(0, h)
        inputs = [torch.cat(pair) for pair in zip(forth, back, strict=True)]
    memory = torch.stack([a + b for a, b in zip(forth, back, strict=True)])
    first = torch.tanh(model.bridge(forth[-1] + back[0])).split(width)
    states, logits = list(first), []
    for token in fed:
        x = table[token]
        for layer in range(model.config.num_hidden_layers):
            states[layer] = x = gru_cell(x, states[layer], *weights_of(model.decoder, layer))
        shares = torch.stack([h @ x for h in memory]).exp()
        context = sum(share / shares.sum() * h for share, h in zip(shares, memory, strict=True))
        combined = torch.tanh(model.combine.weight @ torch.cat([context, x]))
        logits.append(table @ combined + model.lm_head.bias)
    return torch.stack(logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_gru_is_the_papers_equations_and_never_sees_padding(side):
    model = made("gru")
    ids, mask = padded(side)
    fed = torch.randint(3, VOCABULARY, (4, 5), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=fed).logits
        for row in range(4):
            expected = unrolled_logits(model, ids[row][mask[row].bool()].tolist(), fed[row].tolist())
            torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_lstm_never_sees_padding(side):
    model = made("lstm")
    ids, mask = padded(side)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        for row in range(4):
            alone = model(input_ids=ids[row][mask[row].bool()][None]).logits[0]
            torch.testing.assert_close(logits[row][mask[row].bool()], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_carrying_the_state_writes_what_reading_all_again_writes(kind, beams):
    model = made(kind)
    ids, mask = padded()
    settings = dict(
        max_new_tokens=12, min_new_tokens=12, do_sample=False, num_beams=beams, return_dict_in_generate=True
    )
    carried = model.generate(input_ids=ids, attention_mask=mask, output_logits=True, **settings)
    again = model.generate(input_ids=ids, attention_mask=mask, output_logits=True, use_cache=False, **settings)
    assert torch.equal(carried.sequences, again.sequences)
    for one, other in zip(carried.logits, again.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_newest_token_is_read(kind):
    model = made(kind)
    ids, mask = padded()
    network = model.decoder if kind == "gru" else model.model.lstm
    read = []
    network.register_forward_pre_hook(
        lambda module, args: read.append(args[0].shape[1] if torch.is_tensor(args[0]) else "prompt")
    )
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert read == [1] * 8 if kind == "gru" else read == ["prompt", *[1] * 7]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_seen_while_sampling_is_scored_alike(kind):
    model = made(kind)
    attach_value_head(model)
    torch.nn.init.normal_(model.value_head.linear.weight)
    add_scoring(model)
    ids, mask = padded()
    config = GenerationConfig(
        max_new_tokens=9, do_sample=True, temperature=0.7, eos_token_id=1, pad_token_id=0, top_k=0
    )
    torch.manual_seed(3)
    sampled = SamplingDecoder(with_values=True)(model, ids, mask, config)
    scored = score_completions(
        model, ids, mask, sampled.completion_ids, sampled.completion_mask, temperature=0.7, values="full"
    )
    torch.testing.assert_close(sampled.log_probs, scored["log_probs"], rtol=0, atol=1e-5)
    torch.testing.assert_close(sampled.values, scored["values"], rtol=1e-4, atol=1e-4)
    assert sampled.log_probs.std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_as_it_was_saved(kind, tmp_path):
    model = made(kind)
    model.save_pretrained(tmp_path)
    loader = AutoModelForSeq2SeqLM if kind == "gru" else AutoModelForCausalLM
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    if kind == "gru":
        assert loaded.lm_head.weight is loaded.encoder.embed_tokens.weight


def test_the_loss_without_logits_is_the_loss_of_all_logits_gradient_included():
    model = made("gru").train()  # no dropout
    ids, mask = padded()
    labels = torch.tensor([[5, 6, 7], [8, -100, -100], [9, 10, -100], [11, 12, -100]])
    lean = model(input_ids=ids, attention_mask=mask, labels=labels)
    assert lean.logits is None
    lean.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    full = model(input_ids=ids, attention_mask=mask, labels=labels, skip_logits=False)
    expected = torch.nn.functional.cross_entropy(full.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    expected.backward()
    torch.testing.assert_close(lean.loss, expected)
    for got, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-6)
    assert model.eval()(input_ids=ids, attention_mask=mask, labels=labels).logits is not None


def test_untied_weights_are_two():
    model = made("gru", tie_word_embeddings=False)
    assert model.lm_head.weight is not model.encoder.embed_tokens.weight
    with pytest.raises(ValueError, match="tie_word_embeddings needs embedding_size == hidden_size, got 8 and 16"):
        made("lstm", tie_word_embeddings=True)


def test_the_emotion_loss_is_added_where_an_emotion_is_known():
    model = made("gru", emotions=["sad", "glad", "proud"])
    ids, mask = padded()
    labels = torch.randint(3, VOCABULARY, (4, 5))
    labels[1, 2:] = -100
    emotions = torch.tensor([2, -100, 0, -100])
    plain = model(input_ids=ids, attention_mask=mask, labels=labels)
    both = model(input_ids=ids, attention_mask=mask, labels=labels, emotion_labels=emotions)
    expected = F.cross_entropy(plain.emotion_logits[[0, 2]], torch.tensor([2, 0]))
    torch.testing.assert_close(both.loss - plain.loss, expected)
    nll = F.cross_entropy(plain.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(plain.loss, nll)
    unknown = model(input_ids=ids, attention_mask=mask, labels=labels, emotion_labels=torch.full((4,), -100))
    torch.testing.assert_close(unknown.loss, plain.loss)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("trainer", "config", "rate"), [(ReinforceTrainer, ReinforceConfig, 1e-2), (PPOTrainer, PPOConfig, 5e-3)]
)
def test_every_method_trains_it(kind, trainer, config, rate, tmp_path):
    data = Dataset.from_dict({"prompt": ["i loved the film", "the plot was", "it"] * 40})
    args = config(
        output_dir=str(tmp_path), per_device_train_batch_size=32, max_completion_length=6, learning_rate=rate,
        max_steps=60, lr_scheduler_type="constant", report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", kl_coef=0.0, seed=1, logging_steps=20,
    )  # fmt: skip

    def share_of_good(prompts, completions, **columns):
        return [text.split().count("good") / 6 for text in completions]

    run = trainer(made(kind, 1), share_of_good, args, data, data.select(range(60)), tiny_tokenizer())
    before = run.evaluate()["eval_reward"]
    run.train()
    assert run.evaluate()["eval_reward"] > before + 0.3
