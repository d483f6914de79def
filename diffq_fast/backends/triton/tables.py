"""What a launch over many weights reads from: tables on the device, built once and kept while nothing
changes.

A *plan* holds what does not depend on addresses. It is copied to the device, which waits, once per list of sizes,
and kept for good: a CUDA graph may replay it. Addresses change when tensors move, so their table is made by kernels
that carry the numbers as arguments: no copy from the host, nothing waits, and a graph records it. Such a table is
used only on the stream that it was made on.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...reference.sizes import group_count

# Columns of a plan's rows, one row per weight; kernels read them by these numbers.
COUNT, FIRST_PROGRAM, OFFSET, FIRST_GROUP, STREAM, INDEX, PROGRAMS, PARTS = range(8)
COLUMNS = 8
# Elements between outputs in their common buffer are rounded up to this: 128 bytes of the smallest dtype.
OUTPUT_ALIGNMENT = 64
# Programs that share the second launch of the backward, per weight at most.
MAX_PARTS = 32


@dataclass(frozen=True)
class Plan:
    """Tables of one launch over ``counts`` weights; ``owners[p]`` is the row of the weight that program p
    works on."""

    rows: Tensor  # int64 [weights, COLUMNS]
    owners: Tensor  # int32 [programs]
    part_owners: Tensor  # int32 [parts of all weights, 2]: row, and which part of it
    buffer_size: int
    templates: list[Tensor]  # shapes of outputs and, between them, of the gaps of the common buffer
    places: list[int]  # which of the templates are outputs


def _device_plan(
    device: torch.device,
    shapes: tuple[torch.Size, ...],
    streams: tuple[int, ...],
    indices: tuple[int, ...],
    group_offsets: tuple[int, ...],
    programs: tuple[int, ...],
) -> Plan:
    counts = [shape.numel() for shape in shapes]
    first_programs = list(itertools.accumulate(programs, initial=0))[:-1]
    parts = [min(number, MAX_PARTS) for number in programs]
    padded = [-(-count // OUTPUT_ALIGNMENT) * OUTPUT_ALIGNMENT for count in counts]
    offsets = list(itertools.accumulate(padded, initial=0))
    columns = (counts, first_programs, offsets[:-1], group_offsets, streams, indices, programs, parts)
    rows = torch.tensor(list(zip(*columns, strict=True)), dtype=torch.int64)
    owner = torch.arange(len(counts), dtype=torch.int32)
    part_owner = owner.repeat_interleave(torch.tensor(parts))
    part = torch.cat([torch.arange(number, dtype=torch.int32) for number in parts])
    templates: list[Tensor] = []
    places: list[int] = []
    scalar = torch.empty((), device=device)
    for shape, count, size in zip(shapes, counts, padded, strict=True):
        places.append(len(templates))
        templates.append(scalar.expand(shape))
        if size > count:
            templates.append(scalar.expand(size - count))
    return Plan(
        rows.to(device),
        owner.repeat_interleave(torch.tensor(programs)).to(device),
        torch.stack([part_owner, part], 1).to(device),
        offsets[-1],
        templates,
        places,
    )


_cached_plan = functools.lru_cache(maxsize=None)(_device_plan)


def group_offsets_of(weights: Sequence[Tensor], group_size: int) -> list[int]:
    """Index of each weight's first group among the groups of all weights."""
    groups = (group_count(weight.numel(), group_size) for weight in weights)
    return list(itertools.accumulate(groups, initial=0))[:-1]


def plan_of(
    weights: Sequence[Tensor],
    streams: Sequence[int],
    indices: Sequence[int],
    group_offsets: Sequence[int],
    programs: Sequence[int],
) -> Plan:
    """The plan for ``weights``, whose results stand at ``indices`` of the results of all weights."""
    shapes = tuple(weight.shape for weight in weights)
    arguments = tuple(streams), tuple(indices), tuple(group_offsets), tuple(programs)
    return _cached_plan(weights[0].device, shapes, *arguments)


def _device_addresses(device: torch.device, stream: int, addresses: tuple[int, ...]) -> Tensor:
    table = torch.zeros(len(addresses), dtype=torch.int64, device=device)
    torch._foreach_add_(list(table.unbind()), list(addresses))
    return table


_cached_addresses = functools.lru_cache(maxsize=256)(_device_addresses)


def current_stream(device: torch.device) -> int:
    """A number for the stream that work on ``device`` is queued on; 0 on the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def capturing(device: torch.device) -> bool:
    """Whether the current stream records a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def addresses_of(*lists: Sequence[Tensor]) -> Tensor:
    """int64 ``[weights, lists]`` on the device: where each weight's tensors begin."""
    device = lists[0][0].device
    addresses = tuple(tensor.data_ptr() for row in zip(*lists, strict=True) for tensor in row)
    build = _device_addresses if capturing(device) else _cached_addresses
    return build(device, current_stream(device), addresses)


@functools.lru_cache(maxsize=64)
def _cached_counters(device: torch.device, stream: int, number: int) -> Tensor:
    return torch.zeros(number, dtype=torch.int32, device=device)


def counters(device: torch.device, number: int) -> Tensor:
    """int32 zeros; a kernel that uses them leaves zeros behind."""
    size = max(1024, 1 << (number - 1).bit_length())
    if capturing(device):
        return torch.zeros(size, dtype=torch.int32, device=device)
    return _cached_counters(device, current_stream(device), size)


def outputs_of(plan: Plan, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """One buffer for the outputs of all weights, and the outputs: tensors of their own over pieces of it.

    One allocation, and places that the plan knows: the table of addresses need not change when outputs move.
    """
    buffer = torch.empty(plan.buffer_size, dtype=dtype, device=plan.rows.device)
    pieces = _split(buffer, plan.templates)
    return buffer, [pieces[place] for place in plan.places]


def pieces_of(buffer: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Tensors of these shapes over consecutive pieces of ``buffer``."""
    scalar = buffer.new_empty(())
    return _split(buffer, [scalar.expand(shape) for shape in shapes])


def _split(buffer: Tensor, templates: Sequence[Tensor]) -> list[Tensor]:
    """No views for autograd: each piece may be changed in place without a word about the others."""
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return list(torch._C._nn.unflatten_dense_tensors(buffer, list(templates)))
