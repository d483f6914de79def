"""What the launchers share: dtypes, tile sizes, and how a list of weights becomes launches.

Launchers work on any device whose pointers Triton takes: CUDA, or the CPU under ``TRITON_INTERPRET=1`` (the
tests).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.options import NoiseOptions
from ...reference.sizes import group_count
from .arguments import Config
from .arithmetic import INTERPRETED
from .tables import Plan, group_begins_of, plan_of

Value = TypeVar("Value")

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


def take(values: Sequence[Value], indices: Sequence[int]) -> list[Value]:
    return [values[i] for i in indices]


def by_dtype(*lists: Sequence[Tensor]) -> Iterator[tuple[list[int], tuple[torch.dtype, ...]]]:
    """Splits a list of weights, with the lists beside it, into launches of one dtype each: indices,
    dtypes."""
    dtypes = [tuple(tensor.dtype for tensor in tensors) for tensors in zip(*lists, strict=True)]
    for alike in dict.fromkeys(dtypes):
        yield [index for index, dtype in enumerate(dtypes) if dtype == alike], alike


def ranges_in_groups(options: NoiseOptions) -> bool:
    """Whether a weight has several ranges: with ``group_size`` 0 its only group is the weight."""
    return options.per_group and options.group_size != 0


def config_of(options: NoiseOptions, **more: Any) -> Config:
    """The options as a kernel is compiled for them, and what ``more`` it is compiled for."""
    same: dict[str, Any] = {"group_size": options.group_size, "param": options.param, "noise_kind": options.noise_kind}
    return Config(ptx=PTX, per_group=ranges_in_groups(options), **same, **more)


def divides_step(group_size: int) -> bool:
    """Whether a kernel of tiles can sum over such groups."""
    return group_size == 0 or STEP % group_size == 0


def tile_steps(group_size: int, narrow: bool = False) -> dict[str, Any]:
    """Sizes for the kernels of tiles. Groups of one or two need many registers for their steps, and so does a
    ``narrow`` result, of which a thread stores eight at a time: they go in half rounds."""
    step = STEP // 2 if group_size in (1, 2) or narrow else STEP
    part_step = max(PART_STEP, group_size) if divides_step(group_size) else PART_STEP
    return {"tile": TILE, "whole_step": max(step, part_step), "part_step": part_step}


def ragged_steps(group_size: int) -> dict[str, Any]:
    """Sizes for the kernels of ragged groups."""
    columns = min(triton.next_power_of_2(group_size), RAGGED_TILE)
    return {"groups": RAGGED_TILE // columns, "columns": columns}


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
    own_streams = [0 if streams is None else streams[i] for i in indices]
    begins = group_begins_of(weights, group_size)
    return plan_of(chosen, own_streams, indices, [begins[i] for i in indices], programs)


def ragged_plan(
    weights: Sequence[Tensor], indices: Sequence[int], group_size: int, streams: Sequence[int] | None = None
) -> Plan:
    """Plan of a launch of a kernel of ragged groups over ``weights[indices]``."""
    return launch_plan(weights, indices, group_size, ragged_steps(group_size)["groups"] * group_size, streams)


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Queues a kernel, unless it has nothing to do; ``constants``: what it is compiled for, and Triton's options."""
    if programs:
        kernel[(programs,)](*arguments, **({"num_warps": WARPS} | constants))


def empty_ranges(weights: Sequence[Tensor], group_size: int) -> tuple[Tensor, Tensor]:
    """Uninitialised ranges of the groups of all weights; ranges of groups have no extremes."""
    groups = sum(group_count(weight.numel(), group_size) for weight in weights)
    ranges = torch.empty((groups, 2), dtype=torch.float32, device=weights[0].device)
    return ranges, torch.empty((0, 4), dtype=torch.int64, device=ranges.device)


def for_each_weight(weights: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised ``[weights, ...]``, but zeros where nothing is written for an empty weight."""
    made = torch.empty((len(weights), *shape), dtype=dtype, device=weights[0].device)
    return made if all(weight.numel() for weight in weights) else made.zero_()
