"""The chunked head against plain autograd."""

import pytest
import torch
from torch import nn

from alignkit.models import head as head_module
from alignkit.models.head import chunked_log_probs, log_probs_from_logits


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [3, 1024])
def test_values_and_gradients_equal_autograds(bias, chunk, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_TOKENS", chunk)
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
