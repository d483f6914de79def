"""Gradients of noisy weights: the compiled core against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.backends import cpu, default
from support.core_cases import (
    COUNTS,
    DTYPES,
    EPSILON,
    GROUP_SIZES,
    KEY,
    assert_all_equal,
    make_logits,
    make_weights,
    ops,
    options,
)

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("param", ["bits", "noise"])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_the_oracle(dtype, group_size, param, per_group):
    weights = make_weights((*COUNTS, 40000), dtype)
    logits = make_logits(weights, group_size)
    grads = make_weights((*COUNTS, 40000), dtype, seed=3)
    streams = list(range(len(weights)))
    bounds = ops.weight_range(weights, group_size, per_group)
    arguments = grads, weights, logits, *bounds, KEY, streams, *options(group_size, per_group, param)
    grad_weights, grad_logits, nonfinite = ops.add_noise_backward(*arguments)
    expected_weights, expected_logits, expected_nonfinite = default.add_noise_backward(*arguments)
    assert torch.equal(nonfinite, expected_nonfinite)
    for got, other in zip(grad_weights, expected_weights, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, other, rtol=max(EPSILON[dtype], 1e-5), atol=2e-4)
    for got, other, logit in zip(grad_logits, expected_logits, logits, strict=True):
        assert got.dtype == torch.float32
        assert got.shape == logit.shape
        scale = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(got, other, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 4, 20000])
def test_gradient_of_ties_equals_the_oracle(group_size, per_group):
    weight = torch.randn(50000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    constant = torch.ones(100)
    weights, grads = [weight, constant], [torch.ones(50000), torch.ones(100)]
    logits = make_logits(weights, group_size)
    bounds = ops.weight_range(weights, group_size, per_group)
    arguments = grads, weights, logits, *bounds, KEY, [0, 1], *options(group_size, per_group)
    got, expected = ops.add_noise_backward(*arguments), default.add_noise_backward(*arguments)
    for one, other in zip(got[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.equal(got[0][0], grads[0])
    assert torch.equal(got[0][1], grads[1])


def test_autograd_through_the_core_matches_float64():
    weight = torch.randn(41, generator=torch.Generator().manual_seed(0))
    logit = torch.linspace(-2, 2, 6)

    def gradients(dtype):
        leaves = weight.to(dtype).requires_grad_(), logit.to(dtype).requires_grad_()
        noisy = ops.add_noise([leaves[0]], [leaves[1]], KEY, [0], None, *options(8))[0][0]
        return torch.autograd.grad((noisy**2).sum(), leaves)

    for got, expected in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_nonfinite_logit_gradients_become_zero_and_are_counted():
    weights, grads = make_weights((64, 41), torch.float32), make_weights((64, 41), torch.float32, seed=3)
    grads[1][3], grads[1][40] = float("nan"), float("inf")
    logits = make_logits(weights, 8)
    bounds = ops.weight_range(weights, 8, False)
    _, grad_logits, nonfinite = ops.add_noise_backward(grads, weights, logits, *bounds, KEY, [0, 1], *options(8))
    assert nonfinite.tolist() == [0.0, 2.0]
    assert grad_logits[1][0] == 0
    assert grad_logits[1][5] == 0
    assert grad_logits[1][1:5].ne(0).all()


def test_expanded_gradients_are_read_element_by_element():
    weights, logits = make_weights((64,), torch.float32), [torch.zeros(8)]
    bounds = ops.weight_range(weights, 8, False)
    rest = weights, logits, *bounds, KEY, [0], *options(8)
    expanded = ops.add_noise_backward([torch.ones(1).expand(64)], *rest)
    assert_all_equal(expanded[0], ops.add_noise_backward([torch.ones(64)], *rest)[0])
