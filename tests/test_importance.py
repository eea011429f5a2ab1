"""Importance weights: closed forms, what is left out, and properties that hold for any numbers."""

import pytest
import torch

from alignkit.errors import ConfigError
from alignkit.importance import (
    best_of_group,
    clip_log_weights,
    effective_sample_size,
    log_mean_exp,
    log_weights,
    self_normalised,
    spread,
)

NAN, NEVER = float("nan"), float("-inf")


def test_log_weights_are_the_sum_in_at_least_float32():
    half = torch.tensor([-1.0, -2.0], dtype=torch.bfloat16)
    found = log_weights(half, torch.tensor([-0.5, NAN]), torch.tensor([-3.0, -1.0]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([1.5, NAN]), equal_nan=True)
    double = torch.zeros(1, dtype=torch.float64)
    assert log_weights(double, double, double).dtype == torch.float64


def test_shares_are_a_softmax_in_each_group_and_leave_out_what_has_no_score():
    values = torch.tensor([0.0, 1.0, 2.0, NAN, 3.0, 3.0, NEVER, NAN, 5.0, NAN, NAN, NAN])
    shares = self_normalised(values, 4).view(3, 4)
    expected = torch.zeros(3, 4)
    expected[0, :3] = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    expected[1, :2] = 0.5
    expected[2, 0] = 1.0
    torch.testing.assert_close(shares, expected)


@pytest.mark.parametrize("nothing", [NAN, NEVER])
def test_a_prompt_without_a_finite_log_weight_has_no_weights(nothing):
    values = torch.full((4,), nothing)
    assert self_normalised(values, 4).tolist() == best_of_group(values, 4).tolist() == [0.0] * 4
    assert effective_sample_size(torch.zeros(4), 4).tolist() == [0.0]
    assert torch.equal(log_mean_exp(values, 4).isnan(), torch.tensor([nothing != nothing]))


def test_the_mean_weight_counts_zeros_and_not_the_unknown():
    values = torch.tensor([0.0, NEVER, NAN, torch.tensor(3.0).log()])
    assert float(log_mean_exp(values, 4)) == pytest.approx(float(torch.tensor(4 / 3).log()))


def test_clipping_is_relative_to_the_mean_weight_of_the_prompt():
    values = torch.tensor([0.0, 0.0, 0.0, 10.0, NAN, 1.0, 1.0, NEVER])
    held, clipped = clip_log_weights(values, 4, 0.5)
    limit = torch.tensor([0.0, 0.0, 0.0, 10.0]).logsumexp(0) - torch.tensor(4.0).log() + 0.5
    assert clipped.tolist() == [False] * 3 + [True] + [False] * 4
    torch.testing.assert_close(held[3], limit)
    assert torch.equal(held[:3], values[:3]) and held[7] == NEVER and bool(held[4].isnan())
    same, none = clip_log_weights(values, 4, None)
    assert same is values and not none.any()


def test_the_best_is_the_first_of_equal_ones():
    assert best_of_group(torch.tensor([1.0, 2.0, 2.0, NAN, NAN, NEVER]), 3).tolist() == [0, 1, 0, 0, 0, 0]


def test_the_effective_sample_size_of_equal_weights_is_their_number():
    assert effective_sample_size(torch.tensor([0.2, 0.2, 0.2, 0.0, 7.0, 0.0, 0.0, 0.0]), 4).tolist() == [
        pytest.approx(3.0),
        1.0,
    ]


def test_the_spread_is_the_deviation_of_the_finite_ones():
    values = torch.tensor([1.0, 2.0, 4.0, NEVER, NAN, 1.0, NAN, NEVER])
    found = spread(values, 4)
    assert float(found[0]) == pytest.approx(float(torch.tensor([1.0, 2.0, 4.0]).std())) and bool(found[1].isnan())


@pytest.mark.parametrize("seed", range(20))
def test_properties_for_any_log_weights(seed):
    generator = torch.Generator().manual_seed(seed)
    values = 5 * torch.randn(24, generator=generator, dtype=torch.float64)
    values[torch.rand(24, generator=generator) < 0.3] = NAN
    values[torch.rand(24, generator=generator) < 0.2] = NEVER
    shares = self_normalised(values, 6).view(4, 6)
    known = values.view(4, 6).isfinite()
    assert torch.allclose(shares.sum(1), known.any(1).double()) and bool((shares[~known] == 0).all())
    size = effective_sample_size(shares.flatten(), 6)
    assert bool(((size >= 1 - 1e-9) & (size <= known.sum(1) + 1e-9))[known.any(1)].all())
    # what all log-weights of a prompt have in common does not matter, to the clip neither
    shifted = values + torch.tensor([1.0, -300.0, 7.0, 0.0]).double().repeat_interleave(6)
    again = self_normalised(clip_log_weights(shifted, 6, 0.3)[0], 6)
    torch.testing.assert_close(again, self_normalised(clip_log_weights(values, 6, 0.3)[0], 6))
    # a clip and a temperature can only even weights out
    for milder in (clip_log_weights(values, 6, 0.3)[0], values / 2):
        assert bool((effective_sample_size(self_normalised(milder, 6), 6) >= size - 1e-9).all())
    # other prompts do not matter
    assert torch.equal(self_normalised(values[:6], 6), shares[0])


def test_groups_that_do_not_fill_the_batch_are_refused():
    with pytest.raises(ConfigError, match="groups of 4"):
        self_normalised(torch.zeros(6), 4)
