"""Quantising and packing on a CUDA device: equal to the oracle on the CPU, bit for bit."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.reference.groups import per_element
from diffq_fast.reference.sizes import group_count, stream_words
from support.gpu_tensors import COUNTS, EPSILON, assert_same, cuda, make, ops

pytestmark = pytest.mark.gpu

WIDEST = 16  # bits
PLANE_COUNTS = (1, 2049, 100_003)
PLANE_SHAPES = ((64, 32), (8, 10), (16, 5), (32, 3))


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 8, 7])
@pytest.mark.parametrize("dtype", EPSILON)
def test_levels_words_and_weights_are_bit_equal(dtype, group_size, per_group):
    for count in COUNTS:
        (weight,) = make((count,), dtype)
        generator = torch.Generator().manual_seed(2)
        groups = (group_count(count, group_size),)
        widths = torch.randint(1, WIDEST + 1, groups, generator=generator, dtype=torch.uint8)
        ranges, _ = default.weight_range([weight], group_size, per_group)
        (levels,) = default.quantize([weight], [widths], ranges, group_size, per_group)
        (restored,) = default.dequantize([levels], [widths], ranges, group_size, per_group, dtype)
        width_of = per_element(widths, count, group_size)
        size = sum(stream_words(int((width_of == width).sum()), width) for width in range(1, 17))
        words = default.pack(levels, widths, group_size, size)
        w, b, r, q, p = cuda([weight, widths, ranges, levels, words])
        assert_same(ops.quantize([w], [b], r, group_size, per_group), [levels])
        assert_same(ops.dequantize([q], [b], r, group_size, per_group, dtype), [restored])
        assert_same(ops.fake_quantize([w], [b], r, group_size, per_group), [restored])
        assert_same([ops.pack(q, b, group_size, size)], [words])
        assert_same([ops.unpack(p, b, group_size, count)], [levels])
        assert_same([ops.quantize_pack(w, b, r, group_size, per_group, size)], [words])
        assert_same([ops.unpack_dequantize(p, b, r, group_size, per_group, [count], dtype)], [restored])


@pytest.mark.parametrize("group_size", [0, 8, 7])
@pytest.mark.parametrize("dtype", EPSILON)
def test_planes_of_a_weight_are_bit_equal(dtype, group_size):
    for count in PLANE_COUNTS:
        (weight,) = make((count,), dtype)
        generator = torch.Generator().manual_seed(2)
        widths = torch.randint(1, WIDEST + 1, (group_count(count, group_size),), generator=generator, dtype=torch.uint8)
        ranges, _ = default.weight_range([weight], group_size, False)
        width_of = per_element(widths, count, group_size)
        counts = [int((width_of == width).sum()) for width in range(1, 17)]
        expected = default.quantize_planes(weight, widths, ranges, group_size, counts)
        assert_same(ops.quantize_planes(*cuda([weight, widths, ranges]), group_size, counts), expected)


def test_planes_are_bit_equal():
    for rows, columns in PLANE_SHAPES:
        for count in (0, 1, 5000):
            values = torch.randint(0, 2**11, (count,)).to(torch.int16)
            planes = default.pack_planes(values, 11, rows, columns)
            assert_same([ops.pack_planes(values.cuda(), 11, rows, columns)], [planes])
            again, seen = ops.pack_planes_seen(values.cuda(), 11, rows, columns)
            assert_same([again], [planes])
            assert 0 <= seen < 2**11
            assert_same([ops.unpack_planes(planes.cuda(), count)], [values])
