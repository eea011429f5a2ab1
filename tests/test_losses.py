"""Losses against what the papers write, and gradients against autograd on the written-out formula."""

import pytest
import torch

from alignkit.losses import approximate_kl, clipped_policy_loss, clipped_value_loss, probability_ratio, reinforce_loss


def test_the_policy_loss_is_ppos_equation_seven():
    log_probs = torch.log(torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]], dtype=torch.float64))
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0]], dtype=torch.float64)
    loss, clipped = clipped_policy_loss(log_probs, torch.zeros(1, 5, dtype=torch.float64), advantages, 0.2)
    assert loss[0].tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8, -2.2])
    assert clipped[0].tolist() == [True, False, False, True, False]


def test_a_clipped_token_has_no_gradient_and_an_unclipped_one_has_the_score_function():
    log_probs = torch.tensor([[0.5, 0.01]], requires_grad=True)
    loss, _ = clipped_policy_loss(log_probs, torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), 0.2)
    loss.sum().backward()
    assert log_probs.grad[0, 0] == 0
    assert log_probs.grad[0, 1].item() == pytest.approx(-2.0 * torch.exp(torch.tensor(0.01)).item())


def test_at_ratio_one_the_policy_gradient_is_reinforces():
    a = torch.randn(3, 4, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    advantages = torch.randn(3, 4)
    clipped_policy_loss(a, a.detach(), advantages, 0.2)[0].sum().backward()
    reinforce_loss(b, advantages).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(b.grad, -advantages)


def test_the_value_loss_takes_the_worse_of_clipped_and_unclipped():
    values, old = torch.tensor([1.0, 1.0, 0.1]), torch.zeros(3)
    returns = torch.tensor([1.0, 0.0, 1.0])
    loss, clipped = clipped_value_loss(values, old, returns, 0.2)
    assert loss.tolist() == pytest.approx([0.5 * 0.64, 0.5, 0.5 * 0.81])
    assert clipped.tolist() == [True, False, False]
    unclipped, _ = clipped_value_loss(values, old, returns, None)
    assert unclipped.tolist() == pytest.approx([0.0, 0.5, 0.405])


def test_huge_log_ratios_stay_finite():
    far = torch.tensor([1e4, -1e4])
    assert torch.isfinite(probability_ratio(far, torch.zeros(2))).all()
    assert torch.isfinite(approximate_kl(far, torch.zeros(2))).all()


def test_approximate_kl_has_the_exact_kl_as_mean():
    generator = torch.Generator().manual_seed(1)
    old, new = (torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    exact = (old.exp() * (old - new)).sum().item()
    assert (old.exp() * approximate_kl(new, old)).sum().item() == pytest.approx(exact, abs=1e-12)
