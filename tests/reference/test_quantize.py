"""Levels of weights, and weights of levels: the oracle against diffq 0.2.4, numpy and decoders written apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffq_fast.reference import quantize as quantize_oracle
from diffq_fast.reference import weight_range as weight_range_oracle
from diffq_fast.reference.sizes import MAX_WIDTH, group_count
from support.oracle import INF, NAN, WIDTHS, noisy_of


def per_element(values, count, group_size):
    return np.array([values[e // group_size if group_size else 0] for e in range(count)])


def numpy_levels(weight, widths, bounds, group_size):
    """round(((w - lo) / (hi - lo)) / u) in float32; bounds has one row per group."""
    step = np.float32(1) / (np.float32(2) ** widths.astype(np.float32) - np.float32(1))
    lo, hi, step = (per_element(x, len(weight), group_size) for x in (bounds[:, 0], bounds[:, 1], step))
    levels = np.rint(((weight - lo) / (hi - lo)) / step)
    assert levels.dtype == np.float32
    return levels


def numpy_weight(levels, widths, bounds, group_size):
    step = np.float32(1) / (np.float32(2) ** widths.astype(np.float32) - np.float32(1))
    lo, hi, step = (per_element(x, len(levels), group_size) for x in (bounds[:, 0], bounds[:, 1], step))
    weight = ((levels.astype(np.float32) * step) * (hi - lo)) + lo
    assert weight.dtype == np.float32
    return weight


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
@pytest.mark.parametrize("count", [2, 8, 9, 1025])
def test_quantize_and_dequantize_equal_numpy_float32(count, group_size, per_group):
    torch.manual_seed(count)
    weight = torch.randn(count) * 3
    groups = group_count(count, group_size)
    widths = (torch.arange(groups) % MAX_WIDTH + 1).to(torch.uint8)
    bounds = weight_range_oracle.weight_range(weight, group_size, per_group)
    rows = bounds.numpy() if per_group else bounds.expand(groups, 2).numpy()
    levels = quantize_oracle.quantize(weight, widths, bounds, group_size)
    with np.errstate(invalid="ignore"):  # a group of one element is constant: 0 / 0
        expected = np.nan_to_num(numpy_levels(weight.numpy(), widths.numpy(), rows, group_size))
    assert levels.dtype == torch.int32
    assert np.array_equal(levels.numpy(), expected)
    restored = quantize_oracle.dequantize(levels, widths, bounds, group_size, torch.float32)
    assert np.array_equal(restored.numpy(), numpy_weight(levels.numpy(), widths.numpy(), rows, group_size))


@pytest.mark.parametrize("width", WIDTHS)
def test_quantize_uses_every_level_of_a_width_and_no_other(width):
    highest = 2**width - 1
    weight = torch.linspace(-1.5, 2.5, 4 * highest + 1)
    widths = torch.tensor([width], dtype=torch.uint8)
    bounds = weight_range_oracle.weight_range(weight, 0, False)
    levels = quantize_oracle.quantize(weight, widths, bounds, 0)
    assert levels.unique().tolist() == list(range(highest + 1))
    restored = quantize_oracle.dequantize(levels, widths, bounds, 0, torch.float32)
    assert restored[0].item() == -1.5
    assert (restored - weight).abs().max() <= 0.5 * 4 / highest * (1 + 1e-3) + 1e-6


def test_quantize_rounds_half_to_even():
    weight = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0])
    widths = torch.tensor([2], dtype=torch.uint8)
    levels = quantize_oracle.quantize(weight * 2, widths, torch.tensor([[0.0, 6.0]]), 0)
    exact = [np.rint(np.float32(w / 3) / np.float32(1 / 3)) for w in weight.tolist()]
    assert levels.tolist() == exact == [0, 0, 2, 2, 3]


@pytest.mark.parametrize("width", [3, 5, 8, 11, 15])
def test_quantize_divides_by_the_step_where_a_product_would_round_elsewhere(width):
    """Next to half a level, x / u and x * (2**b - 1) differ in float32; the format is defined by the first."""
    highest = 2**width - 1
    halves = ((np.arange(min(highest, 4000)) + 0.5) / highest).astype(np.float32)
    around = np.concatenate([halves, np.nextafter(halves, np.float32(0)), np.nextafter(halves, np.float32(1))])
    weight = np.concatenate([around, np.float32([0, 1])])
    expected = numpy_levels(weight, np.array([width]), np.array([[0, 1]], dtype=np.float32), 0)
    product = np.rint(weight * np.float32(highest))
    assert not np.array_equal(product, expected), "the check must be able to tell the two apart"
    widths = torch.tensor([width], dtype=torch.uint8)
    levels = quantize_oracle.quantize(torch.from_numpy(weight), widths, torch.tensor([[0.0, 1.0]]), 0)
    assert np.array_equal(levels.numpy(), expected)


def test_an_empty_range_has_level_0_everywhere():
    levels = quantize_oracle.quantize(
        torch.tensor([2.0, 5.0, -3.0]), torch.tensor([4], dtype=torch.uint8), torch.tensor([[2.0, 2.0]]), 0
    )
    assert levels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [0.0, -0.0, 3.25, -1e30, 1e-42])
@pytest.mark.parametrize("per_group", [False, True])
def test_a_constant_weight_has_one_level_and_comes_back_exactly(value, per_group):
    weight = torch.full((5,), value)
    widths = torch.tensor([1, 9, 16], dtype=torch.uint8)
    bounds = weight_range_oracle.weight_range(weight, 2, per_group)
    levels = quantize_oracle.quantize(weight, widths, bounds, 2)
    assert levels.tolist() == [0] * 5
    assert torch.equal(quantize_oracle.dequantize(levels, widths, bounds, 2, torch.float32), weight)


@pytest.mark.parametrize("group_size", [0, 1, 8])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), ()])
def test_quantize_of_empty_and_single_weights(shape, group_size):
    weight = torch.full(shape, 7.0)
    groups = group_count(weight.numel(), group_size)
    widths = torch.full((groups,), 5, dtype=torch.uint8)
    bounds = weight_range_oracle.weight_range(weight, group_size, False)
    levels = quantize_oracle.quantize(weight, widths, bounds, group_size)
    assert levels.shape == shape
    assert levels.dtype == torch.int32
    restored = quantize_oracle.dequantize(levels, widths, bounds, group_size, torch.float32)
    assert torch.equal(restored, weight)


def test_quantize_keeps_nan_and_infinity_inside_of_the_levels():
    weight = torch.tensor([0.0, NAN, 1.0, INF, -INF])
    widths = torch.tensor([3], dtype=torch.uint8)
    for bounds in ([[0.0, 1.0]], [[NAN, NAN]], [[-INF, INF]]):
        levels = quantize_oracle.quantize(weight, widths, torch.tensor(bounds), 0)
        assert ((levels >= 0) & (levels <= 7)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dequantize_computes_in_float32_and_casts_at_the_end(dtype):
    torch.manual_seed(5)
    weight = torch.randn(6, 7)
    widths = torch.arange(3, 9).to(torch.uint8)
    bounds = weight_range_oracle.weight_range(weight, 7, False)
    levels = quantize_oracle.quantize(weight, widths, bounds, 7)
    single = quantize_oracle.dequantize(levels, widths, bounds, 7, torch.float32)
    cast = quantize_oracle.dequantize(levels, widths, bounds, 7, dtype)
    assert cast.dtype == dtype
    assert cast.shape == (6, 7)
    assert torch.equal(cast, single.to(dtype))
    half = weight.to(torch.bfloat16)
    assert torch.equal(
        quantize_oracle.quantize(half, widths, bounds, 7), quantize_oracle.quantize(half.float(), widths, bounds, 7)
    )


@pytest.mark.parametrize("group_size", [0, 1, 8])
def test_groups_follow_the_logical_order_of_a_permuted_weight(group_size):
    torch.manual_seed(6)
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    groups = group_count(weight.numel(), group_size)
    widths = (torch.arange(groups) % 9 + 2).to(torch.uint8)
    logit, z = torch.randn(groups), torch.randn(weight.numel())
    plain = weight.contiguous()
    bounds = weight_range_oracle.weight_range(plain, group_size, True)
    assert torch.equal(weight_range_oracle.weight_range(weight, group_size, True), bounds)
    expected = quantize_oracle.quantize(plain, widths, bounds, group_size)
    assert torch.equal(quantize_oracle.quantize(weight, widths, bounds, group_size), expected)
    assert torch.equal(noisy_of(weight, logit, z, group_size), noisy_of(plain, logit, z, group_size))
