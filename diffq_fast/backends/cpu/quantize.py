"""Levels of weights, and weights of levels, through the compiled core."""

from __future__ import annotations

import torch

from .. import default
from .loading import core
from .registration import kernel
from .tensors import DTYPES, addresses, empty_like, floats, guard_quantised, supported


@kernel
def quantize(weights, widths, ranges, group_size, per_group):
    tensors = guard_quantised("quantize", weights, widths, ranges, group_size, per_group)
    if not supported(weights):
        return default.quantize(weights, widths, ranges, group_size, per_group)
    weights, widths, ranges = tensors
    levels = empty_like(weights, torch.int32)
    groups = ranges.data_ptr(), group_size, per_group
    core.quantize(floats(weights), addresses(widths), *groups, addresses(levels), torch.get_num_threads())
    return levels


@kernel
def dequantize(levels, widths, ranges, group_size, per_group, dtype):
    tensors = guard_quantised("dequantize", levels, widths, ranges, group_size, per_group)
    if dtype not in DTYPES or any(level.dtype != torch.int32 for level in levels):
        return default.dequantize(levels, widths, ranges, group_size, per_group, dtype)
    levels, widths, ranges = tensors
    weights = empty_like(levels, dtype)
    groups = ranges.data_ptr(), group_size, per_group
    core.dequantize(addresses(levels), addresses(widths), *groups, floats(weights), torch.get_num_threads())
    return weights


@kernel
def fake_quantize(weights, widths, ranges, group_size, per_group, dtype=None):
    tensors = guard_quantised("fake_quantize", weights, widths, ranges, group_size, per_group)
    if not supported(weights) or not (dtype is None or dtype in DTYPES):
        return default.fake_quantize(weights, widths, ranges, group_size, per_group, dtype)
    weights, widths, ranges = tensors
    results = empty_like(weights, dtype)
    groups = ranges.data_ptr(), group_size, per_group
    core.fake_quantize(floats(weights), addresses(widths), *groups, floats(results), torch.get_num_threads())
    return results
