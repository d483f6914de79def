"""Smallest and largest elements, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..._ops import range_dtype
from ...reference import weight_range as reference
from ...reference.groups import flattened
from ...reference.sizes import group_count
from .pieces import PIECE, array_of
from .registration import kernel


@kernel
def weight_range(weights: Sequence[Tensor], group_size: int, per_group: bool) -> tuple[Tensor, Tensor]:
    dtype = range_dtype(weights)
    if per_group:
        ranges = [reference.weight_range(weight, group_size, per_group).to(dtype) for weight in weights]
        return torch.cat(ranges), ranges[0].new_empty((0, 4), dtype=torch.int64)
    pairs = [_range_and_extremes(weight, dtype) for weight in weights]
    return torch.cat([ranges for ranges, _ in pairs]), torch.cat([extremes for _, extremes in pairs])


def _range_and_extremes(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of one weight ``[1, 2]`` and ``[1, 4]``; a large one on a CPU in pieces that stay in its cache."""
    if weight.device.type != "cpu" or weight.numel() <= PIECE:
        ranges = reference.weight_range(weight, 0, False).to(dtype)
        return ranges, reference.extremes(weight, ranges)
    flat = flattened(weight)
    pieces = flat.split(PIECE)
    lows, highs = (torch.stack(ends) for ends in zip(*map(torch.aminmax, pieces), strict=True))
    lo, hi = lows.amin(), highs.amax()
    counts = [sum(_count(piece, end) for piece in pieces) for end in (lo, hi)]
    ties = torch.tensor(counts, dtype=torch.int64, device="cpu").unbind()
    places = _place(flat, lows.argmin(), torch.argmin), _place(flat, highs.argmax(), torch.argmax)
    extremes = torch.stack([*places, *ties]).view(1, 4)
    return torch.stack([lo, hi]).view(1, 2).to(dtype), extremes.masked_fill(lo.isnan() | hi.isnan(), 0)


def _count(piece: Tensor, end: Tensor) -> int:
    """How many elements equal ``end``: twenty times as fast with numpy, and on a CPU nothing is waited for."""
    return int(np.count_nonzero(array_of(piece) == array_of(end)))


def _place(flat: Tensor, piece: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """The index of an end within ``flat``, which is in that piece."""
    elements = piece * PIECE + torch.arange(PIECE, dtype=torch.int64, device=flat.device)
    return elements[choose(flat[elements.clamp(max=len(flat) - 1)])]


def split_ranges(weights: Sequence[Tensor], ranges: Tensor, group_size: int, per_group: bool) -> Sequence[Tensor]:
    """The rows of ``ranges`` that belong to each weight."""
    return ranges.split([group_count(weight.numel(), group_size) if per_group else 1 for weight in weights])
