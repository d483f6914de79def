"""Gradients of noisy weights: the oracle against diffq 0.2.4, numpy and decoders written apart."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference.bits import step_from_bits
from diffq_fast.reference.sizes import group_count
from support.oracle import INF, NAN, assert_close_to_the_largest, backward_of, noisy_of


def test_gradients_equal_diffq(noise_case):
    tensors, group_size, options = noise_case
    grad_weight, grad_logit, nonfinite = backward_of(
        tensors["grad_out"], tensors["weight"], tensors["logit"], tensors["z"], group_size, **options
    )
    assert_close_to_the_largest(grad_weight, tensors["grad_weight"])
    assert_close_to_the_largest(grad_logit, tensors["grad_logit"])
    assert nonfinite.item() == 0


def test_gradients_by_autograd_equal_diffq(noise_case):
    tensors, group_size, options = noise_case
    weight, logit = tensors["weight"].requires_grad_(), tensors["logit"].requires_grad_()
    noisy = noisy_of(weight, logit, tensors["z"], group_size, **options)
    grad_weight, grad_logit = torch.autograd.grad(noisy, (weight, logit), tensors["grad_out"])
    assert_close_to_the_largest(grad_weight, tensors["grad_weight"])
    assert_close_to_the_largest(grad_logit, tensors["grad_logit"])


def test_golden_case_with_ties_shares_the_gradient(golden):
    """diffq's own gradients: the elements at one end got equal shares on top of the gradient that passes."""
    case = {name: golden("noise")[f"4.{name}"] for name in ("weight", "grad_out", "grad_weight")}
    extra = case["grad_weight"] - case["grad_out"]
    for bound in (case["weight"].min(), case["weight"].max()):
        shares = extra[case["weight"] == bound]
        assert len(shares) > 1
        assert shares.abs().min() > 0
        torch.testing.assert_close(shares, shares[:1].expand_as(shares), rtol=0, atol=1e-6)


@pytest.mark.parametrize("param", ["bits", "noise"])
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 4])
def test_backward_equals_autograd_of_the_forward(group_size, per_group, param):
    torch.manual_seed(1)
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    logit = torch.randn(group_count(15, group_size), dtype=torch.float64, requires_grad=True)
    grad, z = torch.randn(5, 3, dtype=torch.float64), torch.randn(15)
    options = {"param": param, "per_group": per_group, "min_bits": 2.5, "max_bits": 9.0}
    noisy = noisy_of(weight, logit, z, group_size, **options)
    expected = torch.autograd.grad(noisy, (weight, logit), grad)
    found = backward_of(grad, weight.detach(), logit.detach(), z, group_size, **options)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("per_group", [False, True])
def test_ties_share_the_gradient_of_the_range_equally(per_group):
    weight = torch.tensor([3.0, -1.0, 0.0, 3.0, -1.0, 3.0, 0.5, 2.0])
    grad = torch.zeros(8)
    grad[2] = 2.0
    z = torch.full((8,), 0.25)
    logit = torch.zeros(1)
    step = step_from_bits(torch.tensor(8.5)).item()
    found = backward_of(grad, weight, logit, z, 8, per_group=per_group)[0]
    at_max, at_min = 2 * 0.25 * step / 3, -2 * 0.25 * step / 2
    expected = [at_max, at_min, 2.0, at_max, at_min, at_max, 0.0, 0.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_ties_of_a_group_stay_in_the_group():
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])  # groups [0 1 1] [1 1 0] [0]
    grad, z, logit = torch.ones(7), torch.ones(7), torch.zeros(3)
    step = step_from_bits(torch.tensor(8.5)).item()
    found = backward_of(grad, weight, logit, z, 3, per_group=True)[0] - grad
    share = 3 * step
    expected = [-share, share / 2, share / 2, share / 2, share / 2, -share, 0.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_nonfinite_logit_gradients_are_zeroed_and_counted():
    grad = torch.tensor([1.0, NAN, 1.0, 1.0, INF, 1.0, 1.0])
    weight, z, logit = torch.arange(7.0), torch.ones(7), torch.zeros(4)
    _, grad_logit, nonfinite = backward_of(grad, weight, logit, z, 2)
    assert nonfinite.item() == 2
    assert (grad_logit == 0).tolist() == [True, False, True, False]
    assert grad_logit.isfinite().all()
