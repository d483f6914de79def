"""Levels packed into 32-bit words: the oracle against diffq 0.2.4, numpy and decoders written apart."""

from __future__ import annotations

import math

import pytest
import torch

from diffq_fast.reference import groups as groups_oracle
from diffq_fast.reference import words as words_oracle
from diffq_fast.reference.sizes import group_count, stream_words
from support.oracle import WIDTHS

AWKWARD = (0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 5000)


def decoded_levels(words, widths, group_size, count):
    """The levels of packed words, by the words of the format alone: one Python integer per lane."""
    width_of = [widths[e // group_size if group_size else 0] for e in range(count)]
    levels, start = [None] * count, 0
    for width in range(1, 17):
        members = [e for e in range(count) if width_of[e] == width]
        for first in range(0, len(members), 1024):
            block = members[first : first + 1024]
            lanes = math.ceil(len(block) / 32)
            bits = [
                sum((words[start + t * lanes + lane] % 2**32) << (32 * t) for t in range(width))
                for lane in range(lanes)
            ]
            for place in range(32 * lanes):
                row, lane = divmod(place, lanes)
                value = bits[lane] >> (row * width) & (2**width - 1)
                if place < len(block):
                    levels[block[place]] = value
                else:
                    assert value == 0, "rows past the end must hold 0"
            start += width * lanes
    assert start == len(words)
    return levels


def random_levels(count, widths, group_size, seed=0):
    torch.manual_seed(seed)
    limit = 2 ** groups_oracle.per_element(widths.to(torch.int64), count, group_size)
    levels = torch.randint(0, 2**16, (count,)) % limit
    return torch.where(torch.arange(count) % 5 == 0, limit - 1, levels).to(torch.int32)


@pytest.mark.parametrize("width", WIDTHS)
def test_pack_of_one_width_decodes_at_awkward_counts(width):
    widths = torch.tensor([width], dtype=torch.uint8)
    for count in AWKWARD:
        widths_of = widths[: min(count, 1)]
        levels = random_levels(count, widths, 0, seed=width)
        words = words_oracle.pack(levels, widths_of, 0)
        assert words.dtype == torch.int32
        assert words.numel() == width * math.ceil(count / 32) == stream_words(count, width)
        assert decoded_levels(words.tolist(), [width], 0, count) == levels.tolist()
        assert torch.equal(words_oracle.unpack(words, widths_of, 0, count), levels)


@pytest.mark.parametrize("group_size", [1, 3, 8, 40])
@pytest.mark.parametrize("count", [1, 9, 1025, 5000])
def test_pack_of_mixed_widths_decodes(count, group_size):
    groups = group_count(count, group_size)
    torch.manual_seed(group_size)
    widths = torch.randint(1, 17, (groups,), dtype=torch.uint8)
    levels = random_levels(count, widths, group_size)
    words = words_oracle.pack(levels, widths, group_size)
    assert decoded_levels(words.tolist(), widths.tolist(), group_size, count) == levels.tolist()
    assert torch.equal(words_oracle.unpack(words, widths, group_size, count), levels)


def test_pack_words_of_small_examples():
    """By hand: 40 levels take two lanes, so value p is in lane p % 2, row p // 2."""
    three = torch.tensor([3], dtype=torch.uint8)
    assert words_oracle.pack(torch.tensor([1, 2, 3]), three, 0).tolist() == [0o321, 0, 0]
    words = words_oracle.pack(torch.arange(40) % 8, three, 0)
    even, odd = ("".join(str(p % 8) for p in reversed(range(start, 40, 2))) for start in (0, 1))
    even, odd = int(even, 8), int(odd, 8)
    expected = [lane >> (32 * t) & 0xFFFFFFFF for t in range(3) for lane in (even, odd)]
    assert [word % 2**32 for word in words.tolist()] == expected
    widths = torch.tensor([5, 2], dtype=torch.uint8)  # the narrower stream comes first
    assert words_oracle.pack(torch.tensor([31, 3]), widths, 1).tolist() == [3, 0, 31, 0, 0, 0, 0]
