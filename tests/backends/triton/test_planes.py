"""Bit planes equal the oracle's."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.reference.groups import per_element
from support.triton_weights import assert_same, interpreted, make, make_widths, needs_triton

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.planes import pack_planes, pack_planes_seen, quantize_planes, unpack_planes


def level_counts(widths, group_size, count):
    width_of = per_element(widths, count, group_size)
    return [int((width_of == width).sum()) for width in range(1, 17)]


@interpreted
@pytest.mark.parametrize(("group_size", "dtype"), [(0, torch.float32), (8, torch.bfloat16), (7, torch.float16)])
def test_planes_of_a_weight_equal_the_oracle(group_size, dtype):
    for count in (0, 1, 2500):
        (weight,) = make((count,), dtype)
        widths = make_widths(count, group_size, (1, 5, 16))
        ranges, _ = default.weight_range([weight], group_size, False)
        for chosen in (widths, widths.clamp(5, 5)):
            counts = level_counts(chosen, group_size, count)
            arguments = weight, chosen, ranges, group_size, counts
            assert_same(quantize_planes(*arguments), default.quantize_planes(*arguments))


@interpreted
def test_planes_of_a_weight_refuse_other_level_counts():
    weight, widths = make((16,))[0], torch.tensor([3, 4], dtype=torch.uint8)
    with pytest.raises(ValueError, match="quantize_planes: expected level_counts"):
        quantize_planes(weight, widths, torch.tensor([[0.0, 1.0]]), 8, [16] + [0] * 15)


@interpreted
@pytest.mark.parametrize(("rows", "columns"), [(64, 32), (8, 10), (16, 5), (32, 3)])
def test_planes_equal_the_oracle(rows, columns):
    for width in (0, 1, 5, 15):
        for count in (0, 1, rows * columns + 3):
            generator = torch.Generator().manual_seed(width)
            values = torch.randint(0, 1 << width, (count,), generator=generator).to(torch.int16)
            arguments = values, width, rows, columns
            planes = default.pack_planes(*arguments)
            assert_same([pack_planes(*arguments)], [planes])
            assert_same(pack_planes_seen(*arguments), default.pack_planes_seen(*arguments))
            assert_same([unpack_planes(planes, count)], [default.unpack_planes(planes, count)])


@interpreted
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_planes_of_every_integer_type(dtype):
    """Of more planes than the type has bits, too: a negative value's upper ones are set."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(0 if dtype == torch.uint8 else -100, 200, (501,), generator=generator).to(dtype)
    for width in (8, 40):
        arguments = values, width, 32, 3
        assert_same([pack_planes(*arguments)], [default.pack_planes(*arguments)])
