"""Quantising, packing and bit planes as compiled, against the oracle, bit for bit."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.reference.groups import per_element
from diffq_fast.reference.sizes import stream_words
from support.triton_weights import INTERPRETED, assert_same, make, make_widths, needs_triton

pytestmark = [
    needs_triton,
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled"),
    pytest.mark.usefixtures("emulator"),
]

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.planes import pack_planes, quantize_planes, unpack_planes
    from diffq_fast.backends.triton.quantize import dequantize, fake_quantize, quantize
    from diffq_fast.backends.triton.words import pack, quantize_pack, unpack, unpack_dequantize

FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16

# Compute capability, group size, range per group, dtype.
QUANTISING = [
    (90, 0, False, FLOAT),
    (90, 8, False, BF16),
    (90, 8, True, FLOAT),
    (90, 7, False, HALF),
    (90, 4096, True, FLOAT),
    (80, 8, False, FLOAT),
]
# Compute capability, group size, range per group, dtype, widths among which each group's is drawn.
PACKING = [
    (90, 0, False, FLOAT, (5,)),
    (90, 8, False, FLOAT, (4,)),
    (90, 8, True, BF16, (1, 16)),
    (90, 7, False, HALF, (3, 8)),
    (80, 8, False, FLOAT, (4, 11)),
]


def words_needed(widths, group_size, count):
    width_of = per_element(widths, count, group_size)
    return sum(stream_words(int((width_of == width).sum()), width) for width in range(1, 17))


@pytest.mark.parametrize(("arch", "group_size", "per_group", "dtype"), QUANTISING)
def test_levels_and_weights_equal_the_oracle(arch, group_size, per_group, dtype):
    for count in (0, 1, 5001):
        weight, widths = make((count + 1,), dtype)[0][1:], make_widths(count, group_size)
        ranges, _ = default.weight_range([weight], group_size, per_group)
        arguments = [widths], ranges, group_size, per_group
        (levels,) = default.quantize([weight], *arguments)
        assert_same(quantize([weight], *arguments), [levels])
        (restored,) = default.dequantize([levels], *arguments, dtype)
        assert_same(dequantize([levels], *arguments, dtype), [restored])
        assert_same(fake_quantize([weight], *arguments), [restored])


@pytest.mark.parametrize("scale", [1.0, 3e-18, 1.2e18, 1e-38, 1e-42])
def test_levels_beside_the_places_where_they_turn_equal_the_oracle(scale):
    """The fused division: every level's edge and its neighbours, ranges near its limits, NaN and infinities."""
    generator = torch.Generator().manual_seed(0)
    for width in (1, 4, 16):
        levels = torch.randint(0, 1 << width, (4100,), generator=generator).double()
        weight = (scale * ((levels + 0.5) / (2.0**width - 1) - 0.4)).float()
        near = torch.randint(-2, 3, (4100,), generator=generator).int()
        weight = (weight.view(torch.int32) + near).view(torch.float32)
        weight[:3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
        ranges, widths = torch.tensor([[-0.4 * scale, 0.6 * scale]]), torch.full((1,), width, dtype=torch.uint8)
        arguments = [weight], [widths], ranges, 0, False
        assert_same(quantize(*arguments), default.quantize(*arguments))
        assert_same(fake_quantize(*arguments), default.fake_quantize(*arguments))


@pytest.mark.parametrize(("arch", "group_size", "per_group", "dtype", "choices"), PACKING)
def test_words_equal_the_oracle(arch, group_size, per_group, dtype, choices):
    for count in (0, 1, 4107):
        (weight,), widths = make((count,), dtype), make_widths(count, group_size, choices)
        ranges, _ = default.weight_range([weight], group_size, per_group)
        options = widths, ranges, group_size, per_group
        (levels,) = default.quantize([weight], [widths], *options[1:])
        (restored,) = default.dequantize([levels], [widths], *options[1:], dtype)
        size = words_needed(widths, group_size, count)
        words = default.pack(levels, widths, group_size, size)
        assert_same([pack(levels, widths, group_size, size)], [words])
        assert_same([unpack(words, widths, group_size, count)], [levels])
        assert_same([quantize_pack(weight, *options, size)], [words])
        assert_same([unpack_dequantize(words, *options, [count], dtype)], [restored])


@pytest.mark.parametrize(
    ("arch", "group_size", "dtype"), [(90, 0, FLOAT), (90, 8, BF16), (90, 7, HALF), (80, 8, FLOAT)]
)
def test_planes_of_a_weight_equal_the_oracle(arch, group_size, dtype):
    for count in (1, 2500):
        (weight,), widths = make((count,), dtype), make_widths(count, group_size, (1, 11))
        ranges, _ = default.weight_range([weight], group_size, False)
        width_of = per_element(widths, count, group_size)
        counts = [int((width_of == width).sum()) for width in range(1, 17)]
        arguments = weight, widths, ranges, group_size, counts
        assert_same(quantize_planes(*arguments), default.quantize_planes(*arguments))


@pytest.mark.parametrize(
    ("arch", "rows", "columns"), [(90, 64, 32), (90, 8, 10), (90, 16, 5), (90, 32, 3), (80, 64, 32)]
)
def test_planes_equal_the_oracle(arch, rows, columns):
    for width in (1, 11):
        for count in (0, 1, rows * columns + 3):
            values = torch.randint(0, 1 << width, (count,)).to(torch.int16)
            arguments = values, width, rows, columns
            planes = default.pack_planes(*arguments)
            assert_same([pack_planes(*arguments)], [planes])
            assert_same([unpack_planes(planes, count)], [default.unpack_planes(planes, count)])
