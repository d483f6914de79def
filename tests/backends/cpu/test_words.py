"""Levels packed into 32-bit words: the compiled core against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.backends import cpu, default
from support.core_cases import COUNTS, DTYPES, GROUP_SIZES, assert_all_equal, make_weights, make_widths, ops

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])


def rows_of(found, widths, per_group):
    return found.split([len(width) for width in widths] if per_group else 1)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def oracle(dtype, group_size, per_group):
    weights = make_weights((*COUNTS, 20000), dtype)
    widths = make_widths(weights, group_size)
    found, _ = ops.weight_range(weights, group_size, per_group)
    levels = ops.quantize(weights, widths, found, group_size, per_group)
    assert_all_equal(levels, default.quantize(weights, widths, found, group_size, per_group))
    back = ops.dequantize(levels, widths, found, group_size, per_group, dtype)
    assert_all_equal(back, default.dequantize(levels, widths, found, group_size, per_group, dtype))
    assert_all_equal(ops.fake_quantize(weights, widths, found, group_size, per_group), back)
    for other in DTYPES:
        expected = default.dequantize(levels, widths, found, group_size, per_group, other)
        assert_all_equal(ops.fake_quantize(weights, widths, found, group_size, per_group, other), expected)
    rows = rows_of(found, widths, per_group)
    for weight, width, level, restored, row in zip(weights, widths, levels, back, rows, strict=True):
        expected = default.pack(level, width, group_size, 0)
        size = expected.numel()
        assert torch.equal(ops.pack(level, width, group_size, size), expected)
        assert torch.equal(ops.unpack(expected, width, group_size, level.numel()), level)
        assert torch.equal(ops.quantize_pack(weight, width, row, group_size, per_group, size), expected)
        shape = list(level.shape)
        assert torch.equal(ops.unpack_dequantize(expected, width, row, group_size, per_group, shape, dtype), restored)
