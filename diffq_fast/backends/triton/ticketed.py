"""Launcher of the forward in one launch (``ticketed_kernel.py``), for a range per tensor and groups that divide a
tile.

A weight of up to about 24 MB is still in a large GPU's L2 when its noise reads it again. The form is chosen by
``DIFFQ_FAST_TICKETED=1``; without it, two launches do the same.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from .launching import (
    CHUNK,
    PTX,
    TILE,
    TYPES,
    WARPS,
    by_dtype,
    contiguous,
    curve_of,
    divides_step,
    launch_plan,
    one_row_each,
    take,
    tile_constants,
)
from .tables import addresses_of, counters, outputs_of
from .ticketed_kernel import ticketed_noise_kernel

# Where the weights' counters begin in the state: on a cache line of their own.
COUNTERS = 32
# A range tile is reduced in steps of so many elements.
RANGE_STEP = 4096
LARGEST_GROUP = 1024
# As many programs of WARPS warps as the kernel's registers let a multiprocessor hold.
PROGRAMS_PER_MULTIPROCESSOR = 4


def takes(group_size: int, per_group: bool) -> bool:
    """Whether the one launch does this kind of forward. Larger groups would need registers of two programs."""
    return not per_group and group_size <= LARGEST_GROUP and divides_step(group_size)


def rounds(group_size: int, narrow: bool) -> dict[str, int]:
    """Sizes of the noise's steps: as for two launches, but half rounds where the range beside them would have
    registers spilled."""
    return tile_constants(group_size, narrow or group_size <= 4)


def ticket_order(tiles: Sequence[int], lag: int) -> list[tuple[int, bool]]:
    """``(row, is noise)`` in the order of the tickets: R0, R1, N0, R2, N1, ... for weights of ``lag`` tiles or more.

    A weight's noise follows once ``lag`` range tiles of later weights stand between: so many programs can be at
    work before one must wait. Weights without tiles get none.
    """
    order: list[tuple[int, bool]] = []
    waiting: deque[tuple[int, int]] = deque()
    handed_out = 0
    for row, number in enumerate(tiles):
        if not number:
            continue
        handed_out += number
        order.append((row, False))
        waiting.append((row, handed_out))
        while waiting[0][1] + lag <= handed_out:
            order.append((waiting.popleft()[0], True))
    return order + [(row, True) for row, _ in waiting]


@functools.cache  # as plans are: a CUDA graph may replay it
def tickets_of(device: torch.device, tiles: tuple[int, ...], lag: int) -> Tensor:
    """int64 ``[2 * tiles of all weights]`` on the device, as the kernel reads them."""
    runs = [(torch.arange(tiles[row]) << 32) + 2 * row + noise for row, noise in ticket_order(tiles, lag)]
    return torch.cat(runs).to(device)


@functools.cache
def _resident_programs(device: torch.device) -> int:
    """How many programs run at a time; on the CPU, where the interpreter runs one, a few to have some leave early."""
    if device.type != "cuda":
        return 3
    return PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


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
) -> tuple[list[Tensor], Tensor, Tensor]:
    """``forward.add_noise_as`` in one launch per dtype, where :func:`takes` allows."""
    weights, logits = contiguous(weights), contiguous(logits, torch.float32)
    found = one_row_each(weights, (2,), torch.float32)
    extremes = one_row_each(weights, (4,), torch.int64)
    noisy: list[Tensor] = list(weights)
    for indices, (dtype,) in by_dtype(weights):
        plan = launch_plan(weights, indices, group_size, TILE, streams)
        buffer, outputs = outputs_of(plan, noisy_dtype or dtype)
        tiles = plan.owners.numel()
        if tiles:
            device = found.device
            programs = min(_resident_programs(device), 2 * tiles)
            sizes = tuple(-(-weights[i].numel() // TILE) for i in indices)
            ticketed_noise_kernel[(programs,)](
                addresses_of(take(weights, indices), take(logits, indices)),
                plan.rows,
                tickets_of(device, sizes, programs),
                tiles,
                len(indices),
                counters(device, COUNTERS + len(indices)),
                key,
                torch.empty(6 * tiles * (TILE // RANGE_STEP), dtype=torch.int32, device=device),
                found,
                extremes,
                buffer,
                *curve_of(min_bits, max_bits, param),
                GROUP=group_size,
                PARAM=param,
                KIND=kind,
                DTYPE=TYPES[dtype],
                RANGE_STEP=RANGE_STEP,
                CHUNK=CHUNK,
                COUNTERS=COUNTERS,
                PTX=PTX,
                num_warps=WARPS,
                **rounds(group_size, (noisy_dtype or dtype).itemsize < 4),
            )
        for index, output in zip(indices, outputs, strict=True):
            noisy[index] = output
    return noisy, found, extremes
