"""Where the levels of each width are. The operators of this family are answered by the reference.

Packing needs to know on the host how many groups have each width: it waits for the device once per tensor of widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...reference.sizes import MAX_WIDTH, group_count, stream_words


class LevelsOfWidth(NamedTuple):
    """The levels of one width: how many, where their words begin, and which groups they are (None: all)."""

    width: int
    number: int
    word_begin: int
    order: Tensor | None


_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def levels_by_width(widths: Tensor, group_size: int, count: int) -> list[LevelsOfWidth]:
    """The levels of each width that occurs in a weight of ``count`` elements, kept for as long as the tensor ``widths``
    lives unchanged."""
    if widths.is_inference():
        return _levels_by_width(widths, group_size, count)
    asked = widths._version, group_size, count
    if _kept.get(widths, (None, None))[0] != asked:
        _kept[widths] = asked, _levels_by_width(widths, group_size, count)
    return _kept[widths][1]


def _levels_by_width(widths: Tensor, group_size: int, count: int) -> list[LevelsOfWidth]:
    size = group_size or count
    if count == 0:
        return []
    groups, last = _groups_by_width(widths)
    order = torch.argsort(widths, stable=True) if max(groups) < widths.numel() else None
    missing = widths.numel() * size - count
    result, group_begin, word_begin = [], 0, 0
    for width, number in enumerate(groups):
        levels = number * size - (missing if width == last else 0)
        if number:
            own = None if order is None else order[group_begin : group_begin + number]
            result.append(LevelsOfWidth(width, levels, word_begin, own))
        group_begin += number
        word_begin += stream_words(levels, width)
    return result


def _groups_by_width(widths: Tensor) -> tuple[list[int], int]:
    """How many groups have 0, 1 … 16 bits, and the width of the last group: the one wait for the device."""
    numbers = torch.bincount(widths.to(torch.int32), minlength=MAX_WIDTH + 1)
    *groups, last = torch.cat([numbers, widths[-1:].to(torch.int64)]).tolist()
    if groups[0] or len(groups) > MAX_WIDTH + 1:
        raise ValueError(f"pack: widths must be between 1 and {MAX_WIDTH}, got {widths.min()} to {widths.max()}")
    return groups, last


def checked_levels(who: str, widths: Tensor, group_size: int, count: int, word_count: int) -> Sequence[LevelsOfWidth]:
    """:func:`levels_by_width`, when there is a width for each group and ``word_count`` is what they need."""
    groups = group_count(count, group_size)
    if widths.numel() != groups:
        raise ValueError(f"{who}: widths: expected {groups} values, one per group, got {widths.numel()}")
    levels = levels_by_width(widths, group_size, count)
    needed = sum(stream_words(each.number, each.width) for each in levels)
    if needed != word_count:
        raise ValueError(f"{who}: widths need exactly {needed} words, got {word_count}")
    return levels
