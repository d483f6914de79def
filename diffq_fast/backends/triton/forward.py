"""Launchers of noise, range and noisy weights; meanings and shapes: ``diffq_fast/_ops.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import default
from . import loading, ticketed
from .launching import (
    CHUNK,
    PTX,
    STEP,
    TILE,
    TYPES,
    WARPS,
    by_dtype,
    contiguous,
    curve_of,
    divides_step,
    group_total,
    launch_plan,
    one_row_each,
    ragged_plan,
    ragged_shape,
    supported,
    take,
    tile_constants,
)
from .noise_kernels import add_noise_kernel, noise_kernel
from .ragged_kernels import group_range_kernel, ragged_noise_kernel
from .range_kernel import weight_range_kernel
from .tables import addresses_of, counters, outputs_of

RANGE_TILE, RANGE_WARPS = 8192, 8


def noise(key: Tensor, stream: int, first: int, count: int, kind: str) -> Tensor:
    z = torch.empty(count, device=key.device)
    if count:
        start = first // STEP * STEP
        programs = -(-(first + count - start) // STEP)
        noise_kernel[(programs,)](
            key, stream, start, first, first + count, z, KIND=kind, TILE=STEP, PTX=PTX, num_warps=WARPS
        )
    return z


def weight_range(weights: Sequence[Tensor], group_size: int, per_group: bool) -> tuple[Tensor, Tensor]:
    if not supported(weights):
        return default.weight_range(weights, group_size, per_group)
    weights = contiguous(weights)
    if per_group and group_size:
        return _group_range(weights, group_size)
    found, extremes = tensor_range(weights)
    return _without_empty(weights, found) if per_group else (found, extremes)


def tensor_range(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Range and extremes of each of the contiguous ``weights``."""
    found = one_row_each(weights, (2,), torch.float32)
    extremes = one_row_each(weights, (4,), torch.int64)
    for indices, (dtype,) in by_dtype(weights):
        plan = launch_plan(weights, indices, 0, RANGE_TILE)
        programs = plan.owners.numel()
        if programs:
            weight_range_kernel[(programs,)](
                addresses_of(take(weights, indices)),
                plan.rows,
                plan.owners,
                programs,
                torch.empty(6 * programs, dtype=torch.int32, device=found.device),
                counters(found.device, len(indices)),
                found,
                extremes,
                FIELDS=1,
                DTYPE=TYPES[dtype],
                TILE=RANGE_TILE,
                CHUNK=CHUNK,
                num_warps=RANGE_WARPS,
            )
    return found, extremes


def _without_empty(weights: Sequence[Tensor], found: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges of groups where each weight is one group; an empty weight has none."""
    rows = [found[index] for index, weight in enumerate(weights) if weight.numel()]
    if len(rows) < len(weights):
        found = torch.stack(rows) if rows else found[:0]
    return found, found.new_empty((0, 4), dtype=torch.int64)


def _group_range(weights: Sequence[Tensor], group_size: int) -> tuple[Tensor, Tensor]:
    found, extremes = _empty_group_range(weights, group_size)
    rows, columns = ragged_shape(group_size)
    for indices, (dtype,) in by_dtype(weights):
        plan = ragged_plan(weights, indices, group_size)
        if plan.owners.numel():
            group_range_kernel[(plan.owners.numel(),)](
                addresses_of(take(weights, indices)),
                plan.rows,
                plan.owners,
                found,
                FIELDS=1,
                GROUP=group_size,
                DTYPE=TYPES[dtype],
                ROWS=rows,
                COLUMNS=columns,
                num_warps=WARPS,
            )
    return found, extremes


def _empty_group_range(weights: Sequence[Tensor], group_size: int) -> tuple[Tensor, Tensor]:
    found = torch.empty((group_total(weights, group_size), 2), device=weights[0].device)
    return found, found.new_empty((0, 4), dtype=torch.int64)


def add_noise(weights, logits, key, streams, tally, group_size, min_bits, max_bits, param, kind, per_group, dtype=None):
    options = group_size, min_bits, max_bits, param, kind, per_group
    if not supported(weights, logits) or not (dtype is None or dtype in TYPES):
        return default.add_noise(weights, logits, key, streams, tally, *options, dtype)
    if loading.ticketed and ticketed.takes(group_size, per_group):
        return ticketed.add_noise_as(dtype, weights, logits, key, streams, *options[:-1])
    return add_noise_as(dtype, weights, logits, key, streams, *options)


def add_noise_as(
    noisy_dtype: torch.dtype | None,
    weights: Sequence[Tensor],
    logits: Sequence[Tensor],
    key: Tensor,
    streams: Sequence[int],
    group_size: int,
    min_bits: float,
    max_bits: float,
    param: str,
    kind: str,
    per_group: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The operator ``add_noise`` in two launches; noisy weights of ``noisy_dtype`` (None: the weights' own)."""
    weights, logits = contiguous(weights), contiguous(logits, torch.float32)
    in_groups = per_group and group_size != 0
    found, extremes = _empty_group_range(weights, group_size) if in_groups else tensor_range(weights)
    noisy: list[Tensor] = list(weights)
    curve = curve_of(min_bits, max_bits, param)
    for indices, (dtype,) in by_dtype(weights):
        constants = {"GROUP": group_size, "PARAM": param, "KIND": kind, "DTYPE": TYPES[dtype], "PTX": PTX}
        if in_groups and not divides_step(group_size):
            kernel = ragged_noise_kernel
            plan = ragged_plan(weights, indices, group_size, streams)
            constants["ROWS"], constants["COLUMNS"] = ragged_shape(group_size)
        else:
            kernel = add_noise_kernel
            plan = launch_plan(weights, indices, group_size, TILE, streams)
            narrow = (noisy_dtype or dtype).itemsize < 4
            constants |= {"PER_GROUP": in_groups, **tile_constants(group_size, narrow)}
        buffer, outputs = outputs_of(plan, noisy_dtype or dtype)
        if plan.owners.numel():
            tables = addresses_of(take(weights, indices), take(logits, indices)), plan.rows, plan.owners
            kernel[(plan.owners.numel(),)](*tables, key, found, buffer, *curve, **constants, num_warps=WARPS)
        for index, output in zip(indices, outputs, strict=True):
            noisy[index] = output
    if per_group and not in_groups:
        found, extremes = _without_empty(weights, found)
    return noisy, found, extremes
