"""Levels of weights, and weights of levels: the operators against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference import quantize as quantize_oracle
from diffq_fast.reference import weight_range as weight_range_oracle
from diffq_fast.reference import words as words_oracle
from diffq_fast.reference.sizes import stream_words
from support.operators import INF, NAN, check, ops, weights_of, widths_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("per_group", [False, True])
def test_opcheck_export_operators(per_group, dtype):
    weights = weights_of(dtype)
    widths = widths_of(weights, 4)
    found, _ = ops.weight_range(weights, 4, per_group)
    check(ops.quantize.default, weights, widths, found, 4, per_group)
    levels = ops.quantize(weights, widths, found, 4, per_group)
    check(ops.dequantize.default, levels, widths, found, 4, per_group, dtype)
    check(ops.fake_quantize.default, weights, widths, found, 4, per_group)
    check(ops.fake_quantize.default, weights, widths, found, 4, per_group, torch.bfloat16)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_export_and_load_equal_the_oracle(dtype, group_size, per_group):
    weights = weights_of(dtype)
    widths = widths_of(weights, group_size)
    found, _ = ops.weight_range(weights, group_size, per_group)
    levels = ops.quantize(weights, widths, found, group_size, per_group)
    restored = ops.dequantize(levels, widths, found, group_size, per_group, dtype)
    at_once = ops.fake_quantize(weights, widths, found, group_size, per_group)
    in_half = ops.fake_quantize(weights, widths, found, group_size, per_group, torch.float16)
    rows = [weight_range_oracle.weight_range(weight, group_size, per_group) for weight in weights]
    for index, (weight, width, bounds) in enumerate(zip(weights, widths, rows, strict=True)):
        expected = quantize_oracle.quantize(weight, width, bounds, group_size)
        assert torch.equal(levels[index], expected)
        assert torch.equal(restored[index], quantize_oracle.dequantize(expected, width, bounds, group_size, dtype))
        assert torch.equal(at_once[index], restored[index])
        half = quantize_oracle.dequantize(expected, width, bounds, group_size, torch.float16)
        assert torch.equal(in_half[index], half)
        words = words_oracle.pack(expected, width, group_size)
        assert torch.equal(ops.pack(levels[index], width, group_size, words.numel()), words)
        one = bounds, group_size, per_group
        assert torch.equal(ops.quantize_pack(weight, width, *one, words.numel()), words)
        assert torch.equal(ops.unpack(words, width, group_size, weight.numel()), expected.reshape(-1))
        assert torch.equal(ops.unpack_dequantize(words, width, *one, list(weight.shape), dtype), restored[index])


@pytest.mark.parametrize("width", [3, 5, 8, 11, 15])
def test_quantize_equals_the_oracle_next_to_half_levels(width):
    """Where another order of float32 operations would round to another level."""
    highest = 2**width - 1
    halves = (torch.arange(min(highest, 4000)) + 0.5) / highest
    around = [halves, torch.nextafter(halves, torch.zeros(())), torch.nextafter(halves, torch.ones(()))]
    weight = torch.cat([*around, torch.tensor([0.0, 1.0])])
    widths, bounds = torch.tensor([width], dtype=torch.uint8), torch.tensor([[0.0, 1.0]])
    (levels,) = ops.quantize([weight], [widths], bounds, 0, False)
    assert torch.equal(levels, quantize_oracle.quantize(weight, widths, bounds, 0))
    (restored,) = ops.dequantize([levels], [widths], bounds, 0, False, torch.float32)
    assert torch.equal(restored, quantize_oracle.dequantize(levels, widths, bounds, 0, torch.float32))
    words = ops.quantize_pack(weight, widths, bounds, 0, False, stream_words(len(weight), width))
    assert torch.equal(words, words_oracle.pack(levels, widths, 0))


@pytest.mark.parametrize("bounds", [[2.0, 2.0], [-1.0, 1.0], [NAN, NAN], [-INF, INF], [0.0, INF]])
def test_quantize_of_odd_values_and_ranges_equals_the_oracle(bounds):
    weight = torch.tensor([2.0, 5.0, -3.0, NAN, INF, -INF, 0.0, -0.0, 1e-45, 3e38])
    widths, found = torch.tensor([5], dtype=torch.uint8), torch.tensor([bounds])
    expected = quantize_oracle.quantize(weight, widths, found, 0)
    (levels,) = ops.quantize([weight], [widths], found, 0, False)
    assert torch.equal(levels, expected)
    assert torch.equal(ops.quantize_pack(weight, widths, found, 0, False, 5), words_oracle.pack(expected, widths, 0))
