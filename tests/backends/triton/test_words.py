"""Levels, weights and words equal the oracle's bit for bit."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.reference.groups import per_element
from diffq_fast.reference.sizes import stream_words
from support.triton_weights import assert_same, interpreted, make, make_widths, needs_triton

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.quantize import dequantize, fake_quantize, quantize
    from diffq_fast.backends.triton.words import pack, quantize_pack, unpack, unpack_dequantize


def words_needed(widths, group_size, count):
    width_of = per_element(widths, count, group_size)
    return sum(stream_words(int((width_of == width).sum()), width) for width in range(1, 17))


@interpreted
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 8, 7])
@pytest.mark.parametrize("count", [0, 1, 33, 1025, 5000])
def test_levels_and_words_equal_the_oracle(count, group_size, per_group):
    weight, widths = make((count,))[0], make_widths(count, group_size)
    ranges, _ = default.weight_range([weight], group_size, per_group)
    arguments = [widths], ranges, group_size, per_group
    (levels,) = default.quantize([weight], *arguments)
    assert_same(quantize([weight], *arguments), [levels])
    (restored,) = default.dequantize([levels], *arguments, torch.float32)
    assert_same(dequantize([levels], *arguments, torch.float32), [restored])
    assert_same(fake_quantize([weight], *arguments), [restored])
    size = words_needed(widths, group_size, count)
    words = default.pack(levels, widths, group_size, size)
    assert_same([pack(levels, widths, group_size, size)], [words])
    assert_same([unpack(words, widths, group_size, count)], [levels])
    options = widths, ranges, group_size, per_group
    assert_same([quantize_pack(weight, *options, size)], [words])
    assert_same([unpack_dequantize(words, *options, [count], torch.float32)], [restored])


@interpreted
@pytest.mark.parametrize("width", range(1, 17))
def test_each_width_alone_round_trips(width):
    levels = torch.randint(0, 1 << width, (3000,), generator=torch.Generator().manual_seed(width)).to(torch.int32)
    widths = torch.full((3000 // 8,), width, dtype=torch.uint8)
    words = default.pack(levels, widths, 8, stream_words(3000, width))
    assert_same([pack(levels, widths, 8, stream_words(3000, width))], [words])
    assert_same([unpack(words, widths, 8, 3000)], [levels])


@interpreted
def test_levels_by_width_follow_a_change_of_widths():
    levels = torch.ones(64, dtype=torch.int32)
    widths = torch.full((8,), 2, dtype=torch.uint8)
    pack(levels, widths, 8, 4)
    widths[0] = 3
    words = pack(levels, widths, 8, 7)
    assert torch.equal(words, default.pack(levels, widths, 8, 7))
    with pytest.raises(ValueError, match="need exactly 7 words, got 4"):
        pack(levels, widths, 8, 4)
    with pytest.raises(ValueError, match="between 1 and 16"):
        pack(levels, torch.full((8,), 17, dtype=torch.uint8), 8, 4)
