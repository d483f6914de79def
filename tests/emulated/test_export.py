"""Quantising, packing and bit planes as compiled, against the oracle, bit for bit."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.reference.sizes import stream_words
from support.triton_weights import INTERPRETED, assert_same, make, make_widths, needs_triton

pytestmark = [
    needs_triton,
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled"),
    pytest.mark.usefixtures("emulator"),
]

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.quantize import fake_quantize, quantize
    from diffq_fast.backends.triton.words import quantize_pack
    from emulated.checks import (
        assert_levels_equal,
        assert_planes_equal,
        assert_planes_of_weight_equal,
        assert_words_equal,
        unaligned,
    )

FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16

# Compute capability, group size, range per group, dtype.
QUANTISING = [
    (90, 0, False, FLOAT),
    (90, 8, False, BF16),
    (90, 8, True, FLOAT),
    (90, 7, False, HALF),
    (90, 4096, True, FLOAT),
    (80, 8, False, FLOAT),
    (100, 8, True, FLOAT),
]
# Compute capability, group size, range per group, dtype, widths among which each group's is drawn.
PACKING = [
    (90, 0, False, FLOAT, (5,)),
    (90, 8, False, FLOAT, (4,)),
    (90, 8, True, BF16, (1, 16)),
    (90, 7, False, HALF, (3, 8)),
    (80, 8, False, FLOAT, (4, 11)),
    (100, 8, False, FLOAT, (4,)),
]


@pytest.mark.parametrize(("arch", "group_size", "per_group", "dtype"), QUANTISING)
def test_levels_and_weights_equal_the_oracle(arch, group_size, per_group, dtype):
    for weight in [*make((0, 1), dtype), unaligned(5001, dtype)]:
        assert_levels_equal(weight, make_widths(weight.numel(), group_size), group_size, per_group)


def beside_turning(width, scale):
    """Weights within two steps of the places where levels turn, of the range -0.4 to 0.6 times scale."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 1 << width, (4100,), generator=generator).double()
    weight = (scale * ((levels + 0.5) / (2.0**width - 1) - 0.4)).float()
    near = torch.randint(-2, 3, (4100,), generator=generator).int()
    weight = (weight.view(torch.int32) + near).view(torch.float32)
    weight[:3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    return weight


@pytest.mark.parametrize("scale", [1.0, 3e-18, 1.2e18, 1e-38, 1e-42])
def test_levels_beside_the_places_where_they_turn_equal_the_oracle(scale):
    """The fused division: every level's edge and its neighbours, ranges near its limits, NaN and infinities."""
    for width in (1, 4, 16):
        weight = beside_turning(width, scale)
        ranges, widths = torch.tensor([[-0.4 * scale, 0.6 * scale]]), torch.full((1,), width, dtype=torch.uint8)
        arguments = [weight], [widths], ranges, 0, False
        assert_same(quantize(*arguments), default.quantize(*arguments))
        assert_same(fake_quantize(*arguments), default.fake_quantize(*arguments))


@pytest.mark.parametrize(("arch", "group_size", "per_group", "dtype", "choices"), PACKING)
def test_words_equal_the_oracle(arch, group_size, per_group, dtype, choices):
    for weight in make((0, 1, 4107), dtype):
        assert_words_equal(weight, make_widths(weight.numel(), group_size, choices), group_size, per_group)


@pytest.mark.parametrize("width", [1, 4, 16])
def test_words_beside_the_places_where_levels_turn_equal_the_oracle(width):
    """In whole blocks, where divisions are fused, and in one that is not whole."""
    ranges, widths = torch.tensor([[-0.4, 0.6]]), torch.full((1,), width, dtype=torch.uint8)
    for count in (4096, 100):
        options = widths, ranges, 0, False, stream_words(count, width)
        weight = beside_turning(width, 1.0)[:count]
        assert_same([quantize_pack(weight, *options)], [default.quantize_pack(weight, *options)])


@pytest.mark.parametrize(
    ("arch", "group_size", "dtype"), [(90, 0, FLOAT), (90, 8, BF16), (90, 7, HALF), (80, 8, FLOAT), (100, 8, FLOAT)]
)
def test_planes_of_a_weight_equal_the_oracle(arch, group_size, dtype):
    for weight in make((1, 2500), dtype):
        assert_planes_of_weight_equal(weight, group_size)


@pytest.mark.parametrize(
    ("arch", "rows", "columns"), [(90, 64, 32), (90, 8, 10), (90, 16, 5), (90, 32, 3), (80, 64, 32), (100, 64, 32)]
)
def test_planes_equal_the_oracle(arch, rows, columns):
    for width in (1, 11):
        assert_planes_equal(rows, columns, width)
