"""logit <-> bits <-> step: both parametrisations, their derivative, and the whole widths of export."""

import math

import numpy as np
import pytest
import torch

from diffq_fast.reference.bits import (
    bits_from_logits,
    logits_from_bits,
    step_and_derivative,
    step_from_bits,
    whole_bits,
)

PARAMS = ("bits", "noise")
INTERVALS = [(2, 15), (3.0, 9.0), (1, 4), (0.5, 15.5), (2.3, 7.7)]
INF = float("inf")


def many_logits(dtype=torch.float32, largest=12.0):
    return torch.linspace(-largest, largest, 20_001, dtype=dtype)


@pytest.mark.parametrize(
    ("param", "logit", "min_bits", "max_bits", "bits"),
    [
        ("bits", 0.0, 2, 15, 8.5),
        ("bits", math.log(3), 2, 10, 8.0),
        ("bits", -math.log(3), 2, 10, 4.0),
        ("noise", 0.0, 1, math.log2(5), math.log2(3)),  # steps 1 and 1/4, their geometric mean 1/2
        ("noise", 0.0, 2, 2.5, math.log2(1 + math.sqrt(3 * (2**2.5 - 1)))),
    ],
)
def test_bits_from_logits_values(param, logit, min_bits, max_bits, bits):
    found = bits_from_logits(torch.tensor(logit, dtype=torch.float64), min_bits, max_bits, param)
    assert found.item() == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(("min_bits", "max_bits"), INTERVALS)
def test_bits_are_computed_in_the_stated_float32_order(min_bits, max_bits):
    """b_max * t + (1 - t) * b_min, each operation rounded to float32, as numpy does it."""
    logits = many_logits()
    t = torch.sigmoid(logits).numpy()
    lowest, highest = np.float32(min_bits), np.float32(max_bits)
    expected = highest * t + (np.float32(1) - t) * lowest
    assert expected.dtype == np.float32
    found = bits_from_logits(logits, min_bits, max_bits, "bits").numpy()
    assert np.array_equal(found, expected)
    other_order = lowest + t * (highest - lowest)
    assert not np.array_equal(found, other_order), "the check must be able to tell the orders apart"


@pytest.mark.parametrize(("min_bits", "max_bits"), INTERVALS)
def test_noise_parametrisation_interpolates_the_logarithm_of_the_step(min_bits, max_bits):
    logits = many_logits(torch.float64)
    step = step_from_bits(bits_from_logits(logits, min_bits, max_bits, "noise"))
    smallest, largest = -math.log(2**max_bits - 1), -math.log(2**min_bits - 1)
    t = 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(step.log(), t * smallest + (1 - t) * largest, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize(("min_bits", "max_bits"), INTERVALS)
def test_logits_from_bits_is_the_inverse(min_bits, max_bits, param):
    margin = (max_bits - min_bits) / 1000
    bits = torch.linspace(min_bits + margin, max_bits - margin, 999, dtype=torch.float64)
    logits = logits_from_bits(bits, min_bits, max_bits, param)
    assert (logits.diff() > 0).all()
    torch.testing.assert_close(bits_from_logits(logits, min_bits, max_bits, param), bits, rtol=1e-12, atol=0)

    logits = many_logits(torch.float64, largest=5.0)
    back = logits_from_bits(bits_from_logits(logits, min_bits, max_bits, param), min_bits, max_bits, param)
    torch.testing.assert_close(back, logits, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("param", PARAMS)
def test_float32_round_trip_of_every_whole_width(param):
    bits = torch.arange(3.0, 15.0)
    logits = logits_from_bits(bits, 2, 15, param)
    assert logits.dtype == torch.float32
    found = bits_from_logits(logits, 2, 15, param)
    torch.testing.assert_close(found, bits, rtol=2e-5, atol=0)
    assert whole_bits(found).tolist() == list(range(3, 15))


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_arithmetic_is_in_float32_unless_the_logits_are_float64(dtype, param):
    logits = torch.tensor([-3.0, 0.25, 2.0], dtype=dtype)
    wide = logits.double() if dtype == torch.float64 else logits.float()
    found = bits_from_logits(logits, 2, 15, param)
    step, derivative = step_and_derivative(logits, 2, 15, param)
    assert found.dtype == step.dtype == derivative.dtype == wide.dtype
    assert torch.equal(found, bits_from_logits(wide, 2, 15, param))
    assert torch.equal(step, step_and_derivative(wide, 2, 15, param)[0])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4)])
@pytest.mark.parametrize("param", PARAMS)
def test_shapes_are_kept(shape, param):
    logits = torch.zeros(shape)
    bits = bits_from_logits(logits, 2, 15, param)
    assert bits.shape == step_from_bits(bits).shape == whole_bits(bits).shape == shape
    assert logits_from_bits(bits, 2, 15, param).shape == shape
    assert [part.shape for part in step_and_derivative(logits, 2, 15, param)] == [shape, shape]


def test_step_from_bits_values():
    assert step_from_bits(torch.tensor([1.0, 2.0, 4.0, 8.0, 15.0])).tolist() == pytest.approx(
        [1, 1 / 3, 1 / 15, 1 / 255, 1 / 32767], rel=1e-7
    )


# -- derivatives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize(("min_bits", "max_bits"), INTERVALS)
def test_step_and_derivative_equals_autograd(min_bits, max_bits, param):
    logits = many_logits(torch.float64, largest=30.0).requires_grad_()
    expected = step_from_bits(bits_from_logits(logits, min_bits, max_bits, param))
    (slope,) = torch.autograd.grad(expected.sum(), logits)
    step, derivative = step_and_derivative(logits.detach(), min_bits, max_bits, param)
    assert torch.equal(step, expected.detach())
    assert (derivative < 0).all()
    torch.testing.assert_close(derivative, slope, rtol=1e-9, atol=1e-14)
    single = step_and_derivative(logits.detach().float(), min_bits, max_bits, param)[1]
    torch.testing.assert_close(single.double(), slope, rtol=5e-5, atol=1e-7)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize(("min_bits", "max_bits"), INTERVALS)
def test_gradcheck(min_bits, max_bits, param):
    logits = torch.tensor([-4.0, -1.5, 0.0, 0.3, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bits_from_logits(x, min_bits, max_bits, param), logits)
    assert torch.autograd.gradcheck(lambda x: step_from_bits(bits_from_logits(x, min_bits, max_bits, param)), logits)
    margin = (max_bits - min_bits) / 8
    bits = torch.linspace(min_bits + margin, max_bits - margin, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: logits_from_bits(b, min_bits, max_bits, param), bits)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("logit", [-INF, -1000.0, -100.0, -30.0, 30.0, 100.0, 1000.0, INF])
def test_extreme_logits_reach_the_bounds_and_keep_a_finite_derivative(logit, param):
    logits = torch.tensor([logit])
    bits = bits_from_logits(logits, 2, 15, param)
    step, derivative = step_and_derivative(logits, 2, 15, param)
    bound = 15 if logit > 0 else 2
    assert bits.item() == pytest.approx(bound, abs=2e-5)
    assert step.item() == pytest.approx(1 / (2**bound - 1), rel=2e-5)
    assert math.isfinite(derivative.item())
    assert abs(derivative.item()) < 1e-9
    assert whole_bits(bits).item() == bound


@pytest.mark.parametrize("param", PARAMS)
def test_derivative_survives_where_one_minus_sigmoid_rounds_to_zero(param):
    """sigmoid(30) is 1 in float32, so t * (1 - t) would be 0."""
    for logit in (20.0, 30.0, 60.0):
        expected = step_and_derivative(torch.tensor(logit, dtype=torch.float64), 2, 15, param)[1].item()
        found = step_and_derivative(torch.tensor(logit), 2, 15, param)[1].item()
        assert found < 0
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("param", PARAMS)
def test_nan_logits_stay_nan(param):
    logits = torch.tensor([float("nan"), 0.0])
    assert bits_from_logits(logits, 2, 15, param).isnan().tolist() == [True, False]
    assert [part.isnan().tolist() for part in step_and_derivative(logits, 2, 15, param)] == [[True, False]] * 2


# -- whole widths ------------------------------------------------------------------------------------------


def test_whole_bits_rounds_half_to_even_and_clamps():
    bits = torch.tensor([0.2, 0.5, 1.49, 1.5, 2.5, 3.5, 4.5, 7.499, 7.5, 8.5, 14.5, 14.51, 15.5, 16.0, 99.0])
    expected = [1, 1, 1, 2, 2, 4, 4, 7, 8, 8, 14, 15, 15, 15, 15]
    widths = whole_bits(bits)
    assert widths.dtype == torch.uint8
    assert widths.tolist() == expected


@pytest.mark.parametrize(
    ("extra_bits", "expected"),
    [(0, [2, 2, 8, 15]), (1, [3, 4, 9, 15]), (0.5, [2, 3, 9, 15]), (-2, [1, 1, 6, 13]), (-20, [1, 1, 1, 1])],
)
def test_whole_bits_adds_the_extra_bits_before_rounding(extra_bits, expected):
    assert whole_bits(torch.tensor([2.0, 2.5, 8.25, 15.0]), extra_bits).tolist() == expected
