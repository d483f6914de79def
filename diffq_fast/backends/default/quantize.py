"""Levels of weights, and weights of levels, the oracle's formula on pieces of each weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...reference import quantize as reference
from .pieces import Piece, pieces_of, spread
from .registration import kernel
from .weight_range import split_ranges


@kernel
def quantize(weights, widths, ranges, group_size, per_group):
    rows = split_ranges(weights, ranges, group_size, per_group)
    made = [torch.empty(weight.shape, dtype=torch.int32, device=weight.device) for weight in weights]
    for to, weight, width, row in zip(made, weights, widths, rows, strict=True):
        flat, levels = weight.reshape(-1), to.view(-1)
        for (begin, end, groups), own in _pieces(flat, row, group_size):
            levels[begin:end] = _levels(flat[begin:end], width[groups], own, group_size)
    return made


def _levels(flat: Tensor, widths: Tensor, ranges: Tensor, group_size: int) -> Tensor:
    """The oracle's, with what belongs to groups spread faster."""
    if len(ranges) > 1:
        return reference.quantize(flat, widths, ranges, group_size)
    step, highest = (spread(each, len(flat), group_size) for each in reference.steps_and_highest_levels(widths))
    ends = ranges[0, 0], ranges[0, 1] - ranges[0, 0]
    return reference.nearest_levels(flat.to(torch.float32), ends, (step, highest))


@kernel
def dequantize(levels, widths, ranges, group_size, per_group, dtype):
    rows = split_ranges(levels, ranges, group_size, per_group)
    made = [torch.empty(level.shape, dtype=dtype, device=level.device) for level in levels]
    for to, level, width, row in zip(made, levels, widths, rows, strict=True):
        flat, weight = level.reshape(-1), to.view(-1)
        for (begin, end, groups), own in _pieces(flat, row, group_size):
            weight[begin:end] = reference.dequantize(flat[begin:end], width[groups], own, group_size, dtype)
    return made


@kernel
def fake_quantize(weights, widths, ranges, group_size, per_group, dtype=None):
    rows = split_ranges(weights, ranges, group_size, per_group)
    made = [torch.empty(each.shape, dtype=dtype or each.dtype, device=each.device) for each in weights]
    for to, weight, width, row in zip(made, weights, widths, rows, strict=True):
        flat, rounded = weight.reshape(-1), to.view(-1)
        for (begin, end, groups), own in _pieces(flat, row, group_size):
            levels = _levels(flat[begin:end], width[groups], own, group_size)
            rounded[begin:end] = reference.dequantize(levels, width[groups], own, group_size, to.dtype)
    return made


def _pieces(flat: Tensor, ranges: Tensor, group_size: int) -> Iterator[tuple[Piece, Tensor]]:
    """The pieces of a weight, each with its ranges, or the only one."""
    for piece in pieces_of(flat.numel(), group_size, flat.device):
        yield piece, ranges if len(ranges) == 1 else ranges[piece.groups]
