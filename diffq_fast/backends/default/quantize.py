"""Levels of weights, and weights of levels."""

from __future__ import annotations

from ...reference import quantize as reference
from .registration import kernel
from .weight_range import split_ranges


@kernel
def quantize(weights, widths, ranges, group_size, per_group):
    rows = split_ranges(weights, ranges, group_size, per_group)
    return [
        reference.quantize(weight, width, row, group_size)
        for weight, width, row in zip(weights, widths, rows, strict=True)
    ]


@kernel
def dequantize(levels, widths, ranges, group_size, per_group, dtype):
    rows = split_ranges(levels, ranges, group_size, per_group)
    return [
        reference.dequantize(level, width, row, group_size, dtype)
        for level, width, row in zip(levels, widths, rows, strict=True)
    ]


@kernel
def fake_quantize(weights, widths, ranges, group_size, per_group, dtype=None):
    levels = quantize(weights, widths, ranges, group_size, per_group)
    rows = split_ranges(weights, ranges, group_size, per_group)
    return [
        reference.dequantize(level, width, row, group_size, dtype or weight.dtype)
        for level, width, row, weight in zip(levels, widths, rows, weights, strict=True)
    ]
