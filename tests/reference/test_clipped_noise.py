"""The oracle of noise in given ranges: its formula, and its gradients against autograd and finite differences."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference.add_noise import noisy_weight
from diffq_fast.reference.clipped_noise import (
    noisy_clipped_weight,
    noisy_clipped_weight_backward,
    rounded_weight_backward,
)
from diffq_fast.reference.options import NoiseOptions
from diffq_fast.reference.quantize import dequantize, quantize
from diffq_fast.reference.sizes import group_count
from diffq_fast.reference.weight_range import weight_range

CASES = [(24, 8, "tensor"), (24, 8, "group"), (23, 5, "tensor"), (23, 5, "group"), (9, 0, "tensor"), (9, 0, "group")]
CASES += [(7, 1, "tensor"), (3, 8, "group"), (1, 0, "tensor")]


def example(count: int, size: int, scope: str, inside: float = 0.7) -> tuple[torch.Tensor, ...]:
    """Weight, logit, noise and ranges that lie inside the weight's own, in float64."""
    torch.manual_seed(count + size)
    weight = torch.randn(count, dtype=torch.float64)
    logit = torch.randn(group_count(count, size), dtype=torch.float64) * 0.3
    noise = torch.rand(count, dtype=torch.float64) - 0.5
    ranges = weight_range(weight, size, scope == "group") * inside
    return weight, logit, noise, ranges.sort(1).values


@pytest.mark.parametrize(("count", "size", "scope"), CASES)
@pytest.mark.parametrize("param", ["bits", "noise"])
def test_gradients_are_those_of_finite_differences(count, size, scope, param):
    weight, logit, noise, ranges = example(count, size, scope)
    options = NoiseOptions(size, 2.0, 6.0, param, "uniform", scope)
    inputs = [each.requires_grad_() for each in (weight, logit, ranges)]

    def function(weight, logit, ranges):
        return noisy_clipped_weight(weight, logit, ranges, noise, options, None)

    assert torch.autograd.gradcheck(function, inputs)
    grad = torch.randn(count, dtype=torch.float64)
    expected = torch.autograd.grad(function(*inputs), inputs, grad)
    made = noisy_clipped_weight_backward(grad, *(each.detach() for each in inputs), noise, options)
    for one, another in zip(made, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("count", "size", "scope"), CASES)
def test_in_the_weights_own_ranges_it_is_the_noise_of_add_noise(count, size, scope):
    weight, logit, noise, _ = example(count, size, scope)
    options = NoiseOptions(size, 2.0, 6.0, "bits", "uniform", scope)
    own = weight_range(weight, size, scope == "group")
    made = noisy_clipped_weight(weight, logit, own, noise, options, None)
    assert torch.equal(made, noisy_weight(weight, logit, noise, options))


def test_an_element_outside_gives_its_gradient_to_the_end():
    weight, ranges = torch.tensor([-3.0, -1.0, 0.5, 1.0, 9.0]), torch.tensor([[-1.0, 1.0]])
    grad, noise = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.zeros(5)
    made = noisy_clipped_weight_backward(grad, weight, torch.zeros(1), ranges, noise, NoiseOptions(0))
    assert made[0].tolist() == [0, 2, 4, 8, 0]
    assert made[2].tolist() == [[1, 16]]


@pytest.mark.parametrize(("count", "size", "scope"), CASES)
def test_gradients_of_rounding_are_those_of_fixed_shares(count, size, scope):
    """The rounded weight is clamp(w) + (hi - lo) * share, the shares of the rounding error taken as constants."""
    weight, _, _, ranges = example(count, size, scope)
    weight, ranges = weight.float(), ranges.float()
    widths = torch.full((group_count(count, size),), 3, dtype=torch.uint8)
    rounded = dequantize(quantize(weight, widths, ranges, size), widths, ranges, size, torch.float32)
    options = NoiseOptions(size, range_scope=scope)
    inputs = [each.double().requires_grad_() for each in (weight, ranges)]
    rows = torch.arange(count) // (size or count) if scope == "group" else torch.zeros(count, dtype=torch.int64)
    lo, hi = inputs[1][rows, 0], inputs[1][rows, 1]
    clipped = inputs[0].clamp(lo, hi)
    share = torch.where(hi > lo, (rounded.double() - clipped) / (hi - lo), 0.0).detach()
    grad = torch.randn(count, dtype=torch.float64)
    expected = torch.autograd.grad(clipped + (hi - lo) * share, inputs, grad)
    made = rounded_weight_backward(grad.float(), weight, rounded, ranges, options)
    for one, another in zip(made, expected, strict=True):
        torch.testing.assert_close(one.double(), another, rtol=1e-4, atol=1e-5)


def test_a_weight_without_elements():
    for scope, rows in (("tensor", 1), ("group", 0)):
        options, empty = NoiseOptions(8, range_scope=scope), torch.zeros(0)
        ranges = torch.zeros(rows, 2)
        assert noisy_clipped_weight(empty, empty, ranges, empty, options, None).shape == (0,)
        made = noisy_clipped_weight_backward(empty, empty, empty, ranges, empty, options)
        assert [tuple(each.shape) for each in made] == [(0,), (0,), (rows, 2)]
