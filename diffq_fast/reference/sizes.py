"""How many groups, levels of each width, and words a weight has: whole numbers alone, without torch.

A packed file's header is read without torch, so what it shares with the operators stands here.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_WIDTH = 16  # bits of a level
LANES = 32
BLOCK = 1024  # levels: 32 lanes of 32 rows
ELEMENTS_PER_WORD = 512  # of a coded weight, for each 16-bit word, at most
MOST_GROUPS_PER_UNIT = 1 << 30  # of short ranges


def group_count(count: int, group_size: int) -> int:
    """Number of groups of a weight with ``count`` elements; the last one may be shorter, ``group_size`` 0 is one."""
    return -(-count // group_size) if group_size else min(count, 1)


def levels_per_width(groups: Sequence[int], last_width: int, count: int, group_size: int) -> list[int]:
    """How many of ``count`` levels have 0, 1 … 16 bits.

    Args:
        groups: how many groups have each width.
        last_width: that of the last group, which may be shorter.
    """
    levels = [number * (group_size or count) for number in groups]
    if count:
        levels[last_width] -= sum(groups) * (group_size or count) - count
    return levels


def stream_words(count: int, width: int) -> int:
    """32-bit words of a stream of ``count`` levels of one width: the format's only size formula."""
    return width * -(-count // LANES)


def word_count(levels: Sequence[int]) -> int:
    """32-bit words of a weight: the sum over widths b of ``stream_words(levels of width b, b)``."""
    return sum([width * -(-count // LANES) for width, count in enumerate(levels)])


def unit_count(groups: int, groups_per_unit: int) -> int:
    """How many units the short ranges of so many groups have."""
    return -(-groups // groups_per_unit)


def short_range_bytes(groups: int, groups_per_unit: int) -> int:
    """Bytes of short ranges: a float32 for each unit, two bytes for each group."""
    return 4 * unit_count(groups, groups_per_unit) + 2 * groups
