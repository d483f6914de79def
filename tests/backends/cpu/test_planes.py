"""Values packed into bit planes: the compiled core against the oracle."""

from __future__ import annotations

import pytest
import torch

import diffq_fast.functional
from diffq_fast.backends import cpu, default
from diffq_fast.reference import planes as planes_oracle
from diffq_fast.reference.sizes import group_count
from support.core_cases import COUNTS, DTYPES, GROUP_SIZES, assert_all_equal, ops

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("rows", [8, 16, 32, 64])
def test_bit_planes_equal_the_oracle(rows, dtype):
    generator = torch.Generator().manual_seed(0)
    for count in COUNTS:
        values = torch.randint(0, 128, (count,), generator=generator).to(dtype)
        for nbits in (0, 1, 7, 9):
            for columns in (1, 32, 33):
                planes = ops.pack_planes(values, nbits, rows, columns)
                assert_all_equal([planes], [default.pack_planes(values, nbits, rows, columns)])
                length = min(count, planes.shape[0] * rows * columns)
                assert_all_equal([ops.unpack_planes(planes, length)], [default.unpack_planes(planes, length)])


def test_bit_planes_above_a_values_own_bits_equal_the_oracle():
    for values in (torch.tensor([0xCE, 1, 255], dtype=torch.uint8), torch.tensor([-2, 7], dtype=torch.int16)):
        assert_all_equal([ops.pack_planes(values, 20, 64, 32)], [default.pack_planes(values, 20, 64, 32)])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("where", [0, 31, 2047, 2048, 49_998])
def test_one_value_that_does_not_fit_is_seen_wherever_it_is(where, dtype):
    bounds = torch.iinfo(dtype)
    values = torch.arange(49_999).remainder(8).to(dtype)
    assert all(0 <= kernel(values, 3, 64, 32)[1] < 8 for kernel in (ops.pack_planes_seen, default.pack_planes_seen))
    for wrong in {8, 64, -1, bounds.min, bounds.max} - {0}:
        if bounds.min <= wrong <= bounds.max:
            values[where] = wrong
            for kernel in (ops.pack_planes_seen, default.pack_planes_seen):
                planes, seen = kernel(values, 3, 64, 32)
                assert not 0 <= seen < 8
                assert torch.equal(planes, planes_oracle.pack_planes(values, 3, 64, 32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_quantize_planes_equals_quantize_then_pack_planes(group_size, dtype):
    for count in (*COUNTS, 30000):
        weight = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
        groups = group_count(count, group_size)
        widths = torch.randint(1, 17, (groups,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        found = diffq_fast.functional.weight_range([weight], group_size=group_size)
        planes = diffq_fast.functional.quantize_planes(weight, widths, found, group_size=group_size)
        levels = diffq_fast.functional.quantize([weight], [widths], found, group_size=group_size)[0]
        members = widths.repeat_interleave(group_size or count)[:count] if count else widths
        for width, each in enumerate(planes, 1):
            chosen = levels[members == width]
            assert torch.equal(each, ops.pack_planes(chosen, width, 64, 32))


def test_quantize_planes_refuses_other_level_counts():
    weight, widths = torch.arange(16.0), torch.tensor([3, 4], dtype=torch.uint8)
    found = torch.tensor([[0.0, 15.0]])
    for counts in ([0, 0, 8, 8] + [0] * 11, [0, 0, 9, 8] + [0] * 12, [0, 0, 8, -8] + [0] * 12, []):
        with pytest.raises(ValueError, match="quantize_planes: expected level_counts"):
            ops.quantize_planes(weight, widths, found, 8, counts)
