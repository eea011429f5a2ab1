"""Advantages against independent code: sums written out, enumeration, scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.advantages import (
    KLController,
    explained_variance,
    gae,
    kl_estimate,
    last_positions,
    leave_one_out,
    masked_mean,
    moments,
    returns_to_go,
    token_rewards,
    whiten,
)
from alignkit.errors import ConfigError


def ragged(lengths: list[int], width: int) -> torch.Tensor:
    return (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()


lengths_strategy = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@given(lengths_strategy, st.floats(0.5, 1.0), st.floats(0.0, 1.0), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_gae_is_the_weighted_sum_of_temporal_differences(lengths, gamma, lam, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = ragged(lengths, 6)
    rewards, values = (torch.randn(len(lengths), 6, generator=generator, dtype=torch.float64) for _ in range(2))
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        for t in range(length):
            expected = 0.0
            for k in range(t, length):
                following = values[row, k + 1].item() if k + 1 < length else 0.0
                delta = rewards[row, k].item() + gamma * following - values[row, k].item()
                expected += (gamma * lam) ** (k - t) * delta
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-9)
            assert returns[row, t].item() == pytest.approx(expected + values[row, t].item(), abs=1e-9)
        assert advantages[row, length:].abs().sum() == 0


def test_gae_with_lambda_one_is_return_minus_value():
    mask = ragged([4, 2], 5)
    rewards, values = torch.randn(2, 5), torch.randn(2, 5)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    expected = (returns_to_go(rewards, mask, 0.9) - values) * mask
    torch.testing.assert_close(advantages, expected)


def test_nothing_at_a_padded_position_reaches_a_sum():
    mask = ragged([3, 1], 4)
    rewards, values = torch.randn(2, 4), torch.randn(2, 4)
    clean = gae(rewards, values, mask)
    for poison in (float("nan"), float("inf")):
        dirty_rewards = torch.where(mask.bool(), rewards, torch.tensor(poison))
        dirty_values = torch.where(mask.bool(), values, torch.tensor(poison))
        for a, b in zip(clean, gae(dirty_rewards, dirty_values, mask), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(masked_mean(dirty_rewards, mask), masked_mean(rewards, mask))
        assert torch.isfinite(token_rewards(torch.zeros(2), mask, dirty_rewards, 0.1)).all()


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_leave_one_out_is_the_mean_of_the_others(groups, size, seed):
    scores = torch.randn(groups * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    baseline = leave_one_out(scores, size)
    for i in range(len(scores)):
        group = range(i - i % size, i - i % size + size)
        assert baseline[i].item() == pytest.approx(np.mean([scores[j].item() for j in group if j != i]))


def test_leave_one_out_leaves_out_those_without_an_opinion():
    nan = float("nan")
    baseline = leave_one_out(torch.tensor([1.0, nan, 3.0, nan, nan, 5.0]), 3)
    assert baseline[:3].tolist() == [3.0, 2.0, 1.0]
    assert baseline[5].item() == 5.0  # no companion with an opinion: advantage 0


def test_leave_one_out_refuses_groups_of_one():
    with pytest.raises(ConfigError, match="num_generations"):
        leave_one_out(torch.ones(4), 1)


def test_kl_estimators_against_enumeration():
    """Over all tokens of a small distribution, k1 and k3 have the exact KL as mean; k2 half the second moment."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(7, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(2))
    exact = (p * (p.log() - q.log())).sum().item()
    for estimator in ("k1", "k3"):
        mean = (p * kl_estimate(p.log(), q.log(), estimator)).sum().item()
        assert mean == pytest.approx(exact, abs=1e-12)
    k2 = (p * kl_estimate(p.log(), q.log(), "k2")).sum().item()
    assert k2 == pytest.approx(float(np.sum(p.numpy() * 0.5 * np.log(p.numpy() / q.numpy()) ** 2)), abs=1e-12)
    assert (kl_estimate(p.log(), q.log(), "k3") >= 0).all()
    assert torch.isfinite(kl_estimate(torch.tensor(-1e4), torch.tensor(0.0), "k3"))


def test_an_unknown_estimator_is_named():
    with pytest.raises(ConfigError, match="k4"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_token_rewards_put_the_score_at_the_last_token():
    mask = ragged([3, 1], 4)
    kl = torch.full((2, 4), 2.0)
    dense = torch.tensor([[1.0, 0.0, 0.0, 9.0], [0.5, 9.0, 9.0, 9.0]])
    got = token_rewards(torch.tensor([10.0, 20.0]), mask, kl, 0.1, dense)
    expected = torch.tensor([[0.8, -0.2, 9.8, 0.0], [20.3, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(got, expected)
    assert last_positions(mask).tolist() == [2, 0]


@given(lengths_strategy, st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_whitening_agrees_with_numpy_and_adds_up_over_processes(lengths, seed):
    mask = ragged(lengths, 6)
    values = torch.randn(len(lengths), 6, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    kept = values[mask.bool()].double().numpy()
    if len(kept) < 2:
        return
    got = whiten(values, mask)[mask.bool()].double().numpy()
    np.testing.assert_allclose(got, (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8), rtol=1e-4, atol=1e-4)
    unshifted = whiten(values, mask, shift_mean=False)[mask.bool()].double().numpy()
    np.testing.assert_allclose(unshifted, got + kept.mean(), rtol=1e-4, atol=1e-4)
    half = len(lengths) // 2
    if half:
        total = moments(values[:half], mask[:half]) + moments(values[half:], mask[half:])
        np.testing.assert_allclose(whiten(values, mask, total).numpy(), whiten(values, mask).numpy(), rtol=1e-6)


def test_explained_variance():
    returns = torch.randn(3, 4)
    mask = torch.ones(3, 4)

    def explained(values: torch.Tensor) -> float:
        return explained_variance(moments(returns, mask), moments(returns - values, mask)).item()

    assert explained(returns) == pytest.approx(1.0)
    assert explained(torch.zeros(3, 4)) == pytest.approx(0.0, abs=1e-6)
    assert explained(-returns) == pytest.approx(-3.0, abs=1e-5)
    values = torch.randn(3, 4)
    assert explained(values) == pytest.approx(1 - float((returns - values).var() / returns.var()), abs=1e-5)


def test_the_adaptive_coefficient_follows_its_closed_form():
    controller = KLController(0.1, target=6.0, horizon=1000)
    controller.update(6.6, 50)
    assert controller.coef == pytest.approx(0.1 * (1 + 0.1 * 50 / 1000))
    controller.update(60.0, 50)  # the error is clipped at 0.2
    assert controller.coef == pytest.approx(0.1 * (1 + 0.1 * 50 / 1000) * (1 + 0.2 * 50 / 1000))
    controller.update(math.nan, 50)
    never_negative = KLController(0.1, 6.0, horizon=50)
    never_negative.update(0.0, 512)
    assert never_negative.coef == 0.05
    fixed = KLController(0.3)
    fixed.update(99.0, 50)
    assert fixed.coef == 0.3
    restored = KLController(0.0, 6.0)
    restored.load_state_dict(controller.state_dict())
    assert restored.coef == controller.coef
