"""Noisy weights and their gradients against the oracle, which they equal as closely as the compiled core's do.

Noisy weights of another dtype equal float32 ones that are cast, bit for bit.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from support.triton_weights import (
    COUNTS,
    EMULATED,
    EPSILON,
    KEY,
    assert_near,
    assert_same,
    interpreted,
    make,
    make_logits,
    needs_triton,
)

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.add_noise import add_noise, add_noise_backward
    from diffq_fast.backends.triton.weight_range import weight_range

GROUP_SIZES = (0, 1, 2, 4, 8, 16, 1024, 4096, 7, 3000)


def both_passes(weights, grads, group_size, per_group, noise_kind, param):
    """Outputs of forward and backward from the kernels and from the oracle."""
    logits = make_logits(weights, group_size)
    options = group_size, 2.0, 15.0, param, noise_kind, per_group
    streams = list(range(3, 3 + len(weights)))
    results = []
    for forward, backward in (
        (add_noise, add_noise_backward),
        (default.add_noise, default.add_noise_backward),
    ):
        noisy, ranges, extremes = forward(weights, logits, KEY, streams, None, *options)
        gradients = backward(grads, weights, logits, ranges, extremes, KEY, streams, *options)
        results.append((noisy, ranges, extremes, *gradients))
    return results


def assert_passes_equal(weights, grads, group_size, per_group, noise_kind="uniform", param="bits"):
    got, expected = both_passes(weights, grads, group_size, per_group, noise_kind, param)
    epsilon = EPSILON[weights[0].dtype]
    assert_near(got[0], expected[0], epsilon, 2e-5)
    assert_same(got[1:3], expected[1:3])
    assert_near(got[3], expected[3], max(epsilon, 1e-5), 1e-4)
    for one, other in zip(got[4], expected[4], strict=True):
        assert one.shape == other.shape
        scale = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6 * scale)
    assert torch.equal(got[5], expected[5])


@interpreted
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_training_equals_the_oracle(group_size, per_group):
    assert_passes_equal(make(COUNTS), make(COUNTS, seed=3), group_size, per_group, "gaussian", "noise")


@interpreted
@pytest.mark.parametrize("group_size", [1, 8, 7])
@pytest.mark.parametrize("dtype", EPSILON)
def test_training_in_each_dtype_equals_the_oracle(dtype, group_size):
    counts = (9, 8200)
    assert_passes_equal(make(counts, dtype), make(counts, dtype, seed=3), group_size, False)
    assert_passes_equal(make(counts, dtype), make(counts, dtype, seed=3), group_size, True)


@interpreted
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 4, 3000])
def test_gradient_of_ties_equals_the_oracle(group_size, per_group):
    tied = make((20000,))[0].clamp(-1, 1)
    weights = [tied, torch.ones(100), torch.tensor([1.0, 1.0, -1.0]), torch.tensor([1.0, float("nan"), 2.0])]
    grads = make([w.numel() for w in weights], seed=3)
    grads[1][3] = float("inf")
    weights.pop(1), grads.pop(1)
    assert_passes_equal(weights, grads, group_size, per_group)


@interpreted
def test_constant_weight_has_no_range_gradient():
    assert_passes_equal([torch.ones(100)], make((100,)), 8, False)


@interpreted
def test_nonfinite_gradients_are_zeroed_and_counted():
    weights, grads = make((9000, 40)), make((9000, 40), seed=3)
    grads[0][17], grads[0][8999], grads[1][3] = float("nan"), float("inf"), float("-inf")
    for group_size in (0, 8, 7):
        got, expected = both_passes(weights, grads, group_size, False, "uniform", "bits")
        assert torch.equal(got[5], expected[5])
        assert all(gradient.isfinite().all() for gradient in got[4])


@interpreted
@pytest.mark.parametrize("group_size", [1, 8, 7])
def test_nonfinite_gradients_of_a_group_reach_its_extremes_alone(group_size):
    """Groups with ties, constant ones too: only elements that equal lo or hi get a part of the range's gradient."""
    weights, grads = [make((9000,))[0].clamp(-1, 1), torch.ones(40)], make((9000, 40), seed=3)
    grads[0][17], grads[0][8999], grads[1][3] = float("nan"), float("inf"), float("-inf")
    got, expected = both_passes(weights, grads, group_size, True, "uniform", "bits")
    assert_near(got[3], expected[3], 1e-5, 1e-4)
    assert torch.equal(got[5], expected[5])


@interpreted
def test_mixed_dtypes_and_layouts_keep_their_places():
    weights = [
        make((24,))[0].to(torch.bfloat16),
        make((90,), seed=4)[0].view(9, 10).t(),
        make((33,), seed=5)[0],
    ]
    got, expected = both_passes(weights, [w.clone() for w in weights], 4, False, "uniform", "bits")
    assert [noisy.dtype for noisy in got[0]] == [weight.dtype for weight in weights]
    assert got[0][1].shape == (10, 9)
    assert got[0][1].is_contiguous()
    for one, other in zip(got[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2e-5)


@interpreted
def test_unaligned_views_equal_the_oracle():
    counts = (8192, 8200)
    weights, grads = ([t[1:] for t in make([c + 1 for c in counts], seed=s)] for s in (0, 3))
    assert weights[0].data_ptr() % 16 == 4
    assert_passes_equal(weights, grads, 8, False)


@interpreted
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 8, 4096, 7])
def test_noisy_weights_of_another_dtype_equal_those_cast_to_it(group_size, per_group):
    weights = [*make((9, 8200)), make((8193,), seed=5)[0][1:], torch.tensor([1.0, float("nan")])]
    lists = weights, make_logits(weights, group_size), KEY, list(range(len(weights))), None
    options = group_size, 2.0, 15.0, "bits", "uniform", per_group
    expected, ranges, extremes = add_noise(*lists, *options)
    for dtype in (torch.bfloat16, torch.float16):
        noisy, *measured = add_noise(*lists, *options, dtype)
        assert_same(noisy, [tensor.to(dtype) for tensor in expected])
        assert_same(measured, [ranges, extremes])


@interpreted
def test_noisy_weights_of_half_precision_ones_are_rounded_once():
    weights = make((8200, 9), torch.bfloat16)
    lists = make_logits(weights, 8), KEY, [0, 1], None, 8, 2.0, 15.0, "bits", "uniform", False
    expected, *_ = add_noise([weight.float() for weight in weights], *lists)
    for dtype in (torch.float16, torch.float32, None):
        noisy, *_ = add_noise(weights, *lists, dtype)
        assert_same(noisy, [tensor.to(dtype or torch.bfloat16) for tensor in expected])


@interpreted
def test_noisy_weights_of_a_dtype_without_kernels_come_from_the_reference():
    weights = make((9,))
    lists = weights, make_logits(weights, 8), KEY, [0], None, 8, 2.0, 15.0, "bits", "uniform", False
    assert_same(add_noise(*lists, torch.float64)[0], default.add_noise(*lists, torch.float64)[0])


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 8, 4096, 7])
def test_gradients_of_a_lower_dtype_equal_those_cast_to_float32(group_size, per_group, dtype):
    weights, grads = make((9, 8200)), make((9, 8200), dtype, seed=3)
    weights[-1].clamp_(-1, 1)
    measured = weight_range(weights, group_size, per_group)
    lists = make_logits(weights, group_size), *measured, KEY, list(range(len(weights)))
    options = group_size, 2.0, 15.0, "bits", "uniform", per_group
    got = add_noise_backward(grads, weights, *lists, *options)
    expected = add_noise_backward([grad.float() for grad in grads], weights, *lists, *options)
    if EMULATED:  # compiled code sums in another order for another dtype: tests/emulated/test_training.py
        assert_near([*got[0], *got[1], got[2]], [*expected[0], *expected[1], expected[2]], 1e-5, 1e-6)
    else:
        assert_same([*got[0], *got[1], got[2]], [*expected[0], *expected[1], expected[2]])
    assert all(grad.dtype == torch.float32 for grad in got[0])


@interpreted
def test_outputs_are_no_views_and_repeat_exactly():
    weights, grads = make((8192, 100, 3)), make((8192, 100, 3), seed=3)
    once, _ = both_passes(weights, grads, 8, False, "gaussian", "bits")
    again, _ = both_passes(weights, grads, 8, False, "gaussian", "bits")
    for one, other in zip(once, again, strict=True):
        assert_same(one if isinstance(one, list) else [one], other if isinstance(other, list) else [other])
    assert not any(noisy._is_view() for noisy in once[0])
    before = once[0][1].clone()
    once[0][0].zero_()
    assert torch.equal(once[0][1], before)
    assert once[0][1]._version == 0
