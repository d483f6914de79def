"""Ranges through the compiled core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import default
from .loading import core
from .registration import kernel
from .tensors import contiguous, empty_ranges, floats, guard_groups, guard_tensors, supported


@kernel
def weight_range(weights: Sequence[Tensor], group_size: int, per_group: bool) -> tuple[Tensor, Tensor]:
    guard_tensors("weight_range", weights)
    guard_groups("weight_range", "weights", [], [], group_size)
    if not supported(weights):
        return default.weight_range(weights, group_size, per_group)
    weights = contiguous(weights)
    ranges, extremes = empty_ranges(weights, group_size, per_group)
    outputs = ranges.data_ptr(), extremes.data_ptr()
    core.weight_range(floats(weights), group_size, per_group, *outputs, torch.get_num_threads())
    return ranges, extremes
