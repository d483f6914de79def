"""Launchers of the ranges; meanings and shapes: ``diffq_fast/_ops.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import default
from .arguments import Config
from .launching import (
    CHUNK,
    TYPES,
    by_dtype,
    contiguous,
    empty_ranges,
    for_each_weight,
    launch,
    launch_plan,
    ragged_plan,
    ragged_steps,
    supported,
    take,
)
from .tables import counters
from .weight_range_kernels import PARTIALS, group_range_kernel, weight_range_kernel

RANGE_TILE, RANGE_WARPS = 8192, 8


def weight_range(weights: Sequence[Tensor], group_size: int, per_group: bool) -> tuple[Tensor, Tensor]:
    if not supported(weights):
        return default.weight_range(weights, group_size, per_group)
    weights = contiguous(weights)
    if per_group and group_size:
        return _group_ranges(weights, group_size)
    ranges, extremes = tensor_ranges(weights)
    return without_empty(weights, ranges) if per_group else (ranges, extremes)


def empty_tensor_ranges(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Uninitialised ranges and extremes, one for each weight."""
    return for_each_weight(weights, (2,), torch.float32), for_each_weight(weights, (4,), torch.int64)


def tensor_ranges(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Range and extremes of each of the contiguous ``weights``."""
    ranges, extremes = empty_tensor_ranges(weights)
    for indices, (dtype,) in by_dtype(weights):
        plan = launch_plan(weights, indices, 0, RANGE_TILE)
        programs = sum(plan.programs)
        partial = torch.empty(PARTIALS.value * programs, dtype=torch.int32, device=ranges.device)
        config = Config(weight=TYPES[dtype], range_step=RANGE_TILE, chunk=CHUNK)
        scratch = programs, partial, counters(ranges.device, len(indices))
        tables = plan.tables(take(weights, indices))
        launch(weight_range_kernel, programs, tables, *scratch, ranges, extremes, CONFIG=config, num_warps=RANGE_WARPS)
    return ranges, extremes


def without_empty(weights: Sequence[Tensor], ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges of groups where each weight is one group; an empty weight has none."""
    there = [ranges[index] for index, weight in enumerate(weights) if weight.numel()]
    if len(there) < len(weights):
        ranges = torch.stack(there) if there else ranges[:0]
    return ranges, torch.empty((0, 4), dtype=torch.int64, device=ranges.device)


def _group_ranges(weights: Sequence[Tensor], group_size: int) -> tuple[Tensor, Tensor]:
    ranges, extremes = empty_ranges(weights, group_size)
    for indices, (dtype,) in by_dtype(weights):
        plan = ragged_plan(weights, indices, group_size)
        config = Config(group_size=group_size, weight=TYPES[dtype], **ragged_steps(group_size))
        launch(group_range_kernel, sum(plan.programs), plan.tables(take(weights, indices)), ranges, CONFIG=config)
    return ranges, extremes
