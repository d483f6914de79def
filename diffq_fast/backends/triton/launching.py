"""What the launchers share: dtypes, tile sizes, and how a list of weights becomes launches.

Launchers work on any device whose pointers Triton takes: CUDA, or the CPU under ``TRITON_INTERPRET=1`` (the
tests).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.sizes import group_count
from .arithmetic import INTERPRETED
from .tables import Plan, group_offsets_of, plan_of

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
PTX = torch.version.hip is None and not INTERPRETED

# A program handles TILE elements in steps of STEP: 32 elements a thread, which keeps 128 bytes of each in
# flight; of PART_STEP where it masks.
TILE, STEP, PART_STEP, WARPS = 8192, 4096, 512, 4
RAGGED_TILE = 1024
CHUNK = 1024


def supported(*lists: Sequence[Tensor]) -> bool:
    """Whether the kernels take these dtypes."""
    return all(tensor.dtype in TYPES for tensors in lists for tensor in tensors)


def contiguous(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The tensors in row-major order; the caller keeps them until the kernels are queued."""
    return [(tensor if dtype is None else tensor.to(dtype)).contiguous() for tensor in tensors]


def take(tensors: Sequence[Tensor], indices: Sequence[int]) -> list[Tensor]:
    return [tensors[i] for i in indices]


def by_dtype(*lists: Sequence[Tensor]) -> Iterator[tuple[list[int], list[torch.dtype]]]:
    """Splits a list of weights, with the lists beside it, into launches of one dtype each: indices,
    dtypes."""
    dtypes = [tuple(tensor.dtype for tensor in row) for row in zip(*lists, strict=True)]
    for found in dict.fromkeys(dtypes):
        yield [index for index, dtype in enumerate(dtypes) if dtype == found], list(found)


def curve_of(min_bits: float, max_bits: float, param: str) -> tuple[float, float]:
    """What the kernels call ``low`` and ``high``: bits, or binary logarithms of the steps, at t = 0 and t
    = 1."""
    if param == "bits":
        return float(min_bits), float(max_bits)
    return -math.log2(2**min_bits - 1), -math.log2(2**max_bits - 1)


def divides_step(group_size: int) -> bool:
    """Whether a kernel of tiles can sum over such groups."""
    return group_size == 0 or STEP % group_size == 0


def tile_constants(group_size: int, narrow: bool = False) -> dict[str, int]:
    """Sizes for the kernels of tiles. Groups of one or two need many registers for their steps, and so does a
    ``narrow`` result, of which a thread stores eight at a time: they go in half rounds."""
    step = STEP // 2 if group_size in (1, 2) or narrow else STEP
    part_step = max(PART_STEP, group_size) if divides_step(group_size) else PART_STEP
    return {"TILE": TILE, "WHOLE_STEP": max(step, part_step), "PART_STEP": part_step}


def ragged_shape(group_size: int) -> tuple[int, int]:
    """Groups and columns of a program of the ragged kernels."""
    columns = min(triton.next_power_of_2(group_size), RAGGED_TILE)
    return RAGGED_TILE // columns, columns


def launch_plan(
    weights: Sequence[Tensor],
    indices: Sequence[int],
    group_size: int,
    elements: int,
    streams: Sequence[int] | None = None,
) -> Plan:
    """Plan of a launch over ``weights[indices]`` whose programs handle ``elements`` elements each."""
    chosen = take(weights, indices)
    programs = [-(-weight.numel() // elements) for weight in chosen]
    seeds = [0 if streams is None else streams[i] for i in indices]
    offsets = group_offsets_of(weights, group_size)
    return plan_of(chosen, seeds, indices, [offsets[i] for i in indices], programs)


def ragged_plan(
    weights: Sequence[Tensor], indices: Sequence[int], group_size: int, streams: Sequence[int] | None = None
) -> Plan:
    """Plan of a launch of a ragged kernel over ``weights[indices]``."""
    return launch_plan(weights, indices, group_size, ragged_shape(group_size)[0] * group_size, streams)


def group_total(weights: Sequence[Tensor], group_size: int) -> int:
    return sum(group_count(weight.numel(), group_size) for weight in weights)


def one_row_each(weights: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised ``[weights, ...]``, but zeros where an empty weight leaves its row unwritten."""
    make = torch.empty if all(weight.numel() for weight in weights) else torch.zeros
    return make((len(weights), *shape), dtype=dtype, device=weights[0].device)
