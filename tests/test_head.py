"""The chunked head against plain autograd."""

import pytest
import torch
from torch import nn

from alignkit.models import head as head_module
from alignkit.models.head import chunked_log_probs, log_probs_from_logits


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [3, 1024])
def test_values_and_gradients_equal_autograds(bias, chunk, monkeypatch):
    monkeypatch.setattr(head_module, "chunk_rows", lambda vocabulary, device: chunk)
    torch.manual_seed(0)
    linear = nn.Linear(8, 13, bias=bias).double()
    hidden = torch.randn(10, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 13, (10,))
    inverse_temperature = torch.rand(10, dtype=torch.float64) + 0.5
    weights = torch.randn(2, 10, dtype=torch.float64)

    def run(outputs):
        linear.zero_grad()
        hidden.grad = None
        log_probs, entropies = outputs
        (weights[0] * log_probs + weights[1] * entropies).sum().backward()
        parameters = [linear.weight.grad, *([linear.bias.grad] if bias else [])]
        return [log_probs.detach(), entropies.detach(), hidden.grad.clone(), *[g.clone() for g in parameters]]

    ours = run(chunked_log_probs(hidden, linear, labels, inverse_temperature))
    plain = run(log_probs_from_logits(linear(hidden), labels, inverse_temperature))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=1e-5, atol=1e-6)


def test_under_autocast_it_computes_in_bf16_and_returns_float32():
    torch.manual_seed(0)
    linear, hidden = nn.Linear(16, 32, bias=False), torch.randn(6, 16, requires_grad=True)
    labels, ones = torch.arange(6), torch.ones(6)
    exact, _ = chunked_log_probs(hidden, linear, labels, ones)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = chunked_log_probs(hidden, linear, labels, ones)
    assert rough.dtype == torch.float32
    assert 1e-5 < (rough - exact).abs().max() < 0.1
    rough.sum().backward()
    assert hidden.grad.dtype == torch.float32 and linear.weight.grad.dtype == torch.float32


def test_no_tokens_at_all_still_has_a_backward():
    linear = nn.Linear(4, 5, bias=False)
    hidden = torch.randn(0, 4, requires_grad=True)
    log_probs, _ = chunked_log_probs(hidden, linear, torch.empty(0, dtype=torch.long), torch.empty(0))
    log_probs.sum().backward()
    assert linear.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("temperature", [0.7, 0.9, 1.1])
def test_bf16_states_are_scored_at_the_temperature_that_was_asked_for(temperature):
    """1 / 0.9 in bf16 is 1 / 0.901: every token's log-probability would be off in the same direction."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(32, 64, bias=False).bfloat16()
    hidden = (4 * torch.randn(4000, 32, generator=generator)).bfloat16()
    labels = torch.randint(0, 64, (4000,), generator=generator)
    inverse = torch.full((4000,), 1 / temperature)
    seen, _ = chunked_log_probs(hidden, linear, labels, inverse)
    logits = hidden.double() @ linear.weight.double().T / temperature
    exact = logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    error = seen.double() - exact
    assert error.mean().abs() < 4 * error.std() / 4000**0.5 + 1e-4
