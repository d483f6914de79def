"""Smallest and largest elements, and where they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._ops import range_dtype
from ...reference import weight_range as reference
from ...reference.sizes import group_count
from .registration import kernel


@kernel
def weight_range(weights: Sequence[Tensor], group_size: int, per_group: bool) -> tuple[Tensor, Tensor]:
    dtype = range_dtype(weights)
    ranges = [reference.weight_range(weight, group_size, per_group).to(dtype) for weight in weights]
    if per_group:
        return torch.cat(ranges), ranges[0].new_empty((0, 4), dtype=torch.int64)
    extremes = [reference.extremes(weight, each) for weight, each in zip(weights, ranges, strict=True)]
    return torch.cat(ranges), torch.cat(extremes)


def split_ranges(weights: Sequence[Tensor], ranges: Tensor, group_size: int, per_group: bool) -> Sequence[Tensor]:
    """The rows of ``ranges`` that belong to each weight."""
    return ranges.split([group_count(weight.numel(), group_size) if per_group else 1 for weight in weights])
