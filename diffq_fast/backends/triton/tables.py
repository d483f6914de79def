"""What a launch over many weights reads from: tables on the device, built once and kept while nothing
changes.

A *plan* holds what does not depend on addresses. It is copied to the device, which waits, once per list of sizes.
The 4,096 plans used last are kept; one that a CUDA graph has recorded is kept for good, as the graph may replay it.
Addresses change when tensors move, so their table is made by kernels that carry the numbers as arguments: no copy from
the host, nothing waits, and a graph records it. Such a table is used only on the stream that it was made on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...reference.sizes import group_count
from .arguments import (
    ELEMENTS,
    GROUP_BEGIN,
    OUTPUT_BEGIN,
    PARTS,
    PLACE,
    PROGRAM_BEGIN,
    PROGRAMS,
    STREAM,
    Tables,
)

# Elements between outputs in their common buffer are rounded up to this: 128 bytes of the smallest dtype.
OUTPUT_ALIGNMENT = 64
# Programs that share the second launch of the backward, per weight at most.
MAX_PARTS = 32
# A bucket of 64 MB has a plan of about 10 kB for each of its launches: 4,096 plans are those of about 80 GB of weights,
# and take about 40 MB.
MAX_PLANS = 4096


@dataclass(frozen=True, eq=False)
class Plan:
    """Tables of one launch over some weights. ``owners[p]`` is the entry of the weight that program p works on."""

    entries: Tensor  # int64 [weights, PLAN_COLUMNS]
    owners: Tensor  # int32 [programs]
    part_owners: Tensor  # int32 [parts of all weights, 2]: entry, and which part of the weight
    programs: tuple[int, ...]  # of each weight
    buffer_size: int
    templates: list[Tensor]  # shapes of outputs and, between them, of the gaps of the common buffer
    places: list[int]  # which of the templates are outputs

    def tables(self, *lists: Sequence[Tensor]) -> Tables:
        """The launch's tables, with where the tensors of ``lists`` are."""
        return Tables(addresses_of(*lists), self.entries, self.owners)


def _device_plan(
    device: torch.device,
    shapes: tuple[torch.Size, ...],
    streams: tuple[int, ...],
    places: tuple[int, ...],
    group_begins: tuple[int, ...],
    programs: tuple[int, ...],
) -> Plan:
    counts = [shape.numel() for shape in shapes]
    padded = [-(-count // OUTPUT_ALIGNMENT) * OUTPUT_ALIGNMENT for count in counts]
    parts = [min(number, MAX_PARTS) for number in programs]
    columns = {
        ELEMENTS: counts,
        PROGRAM_BEGIN: _begins(programs),
        OUTPUT_BEGIN: _begins(padded),
        GROUP_BEGIN: group_begins,
        STREAM: streams,
        PLACE: places,
        PROGRAMS: programs,
        PARTS: parts,
    }
    in_order = [columns[column] for column in sorted(columns, key=lambda column: column.value)]
    entries = torch.tensor(in_order, dtype=torch.int64, device="cpu").t().contiguous()
    part_owners = [(entry, part) for entry, number in enumerate(parts) for part in range(number)]
    templates, outputs = _templates(device, shapes, padded)
    return Plan(
        entries.to(device),
        _owners(programs).to(device),
        torch.tensor(part_owners, dtype=torch.int32, device="cpu").view(-1, 2).to(device),
        programs,
        sum(padded),
        templates,
        outputs,
    )


def _begins(sizes: Sequence[int]) -> list[int]:
    """Where each of consecutive pieces of these sizes begins."""
    return list(itertools.accumulate(sizes, initial=0))[:-1]


def _owners(programs: Sequence[int]) -> Tensor:
    entries = torch.arange(len(programs), dtype=torch.int32, device="cpu")
    return entries.repeat_interleave(torch.tensor(programs, dtype=torch.int64, device="cpu"))


def _templates(
    device: torch.device, shapes: Sequence[torch.Size], padded: Sequence[int]
) -> tuple[list[Tensor], list[int]]:
    """Tensors of the outputs' shapes and of the gaps behind them, without memory, and which are outputs."""
    templates: list[Tensor] = []
    outputs: list[int] = []
    scalar = torch.empty((), dtype=torch.float32, device=device)
    for shape, size in zip(shapes, padded, strict=True):
        outputs.append(len(templates))
        templates.append(scalar.expand(shape))
        if size > shape.numel():
            templates.append(scalar.expand(size - shape.numel()))
    return templates, outputs


_cached_plan = lru_cache(maxsize=MAX_PLANS)(_device_plan)
_recorded: set[Any] = set()


def kept(table: Any, device: torch.device) -> Any:
    """The plan or tensor, kept for good if a CUDA graph is being recorded."""
    if capturing(device):
        _recorded.add(table)
    return table


def plan_of(
    weights: Sequence[Tensor],
    streams: Sequence[int],
    places: Sequence[int],
    group_begins: Sequence[int],
    programs: Sequence[int],
) -> Plan:
    """The plan for ``weights``, whose results stand at ``places`` among those of all weights."""
    device = weights[0].device
    shapes = tuple(weight.shape for weight in weights)
    sizes = tuple(streams), tuple(places), tuple(group_begins), tuple(programs)
    return kept(_cached_plan(device, shapes, *sizes), device)


def group_begins_of(weights: Sequence[Tensor], group_size: int) -> list[int]:
    """Index of each weight's first group among the groups of all weights."""
    return _begins([group_count(weight.numel(), group_size) for weight in weights])


def _device_addresses(device: torch.device, stream: int, addresses: tuple[int, ...]) -> Tensor:
    table = torch.zeros(len(addresses), dtype=torch.int64, device=device)
    torch._foreach_add_(list(table.unbind()), list(addresses))
    return table


_cached_addresses = lru_cache(maxsize=256)(_device_addresses)


def current_stream(device: torch.device) -> int:
    """A number for the stream that work on ``device`` is queued on; 0 on the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def capturing(device: torch.device) -> bool:
    """Whether the current stream records a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def addresses_of(*lists: Sequence[Tensor]) -> Tensor:
    """int64 ``[weights, lists]`` on the device: where each weight's tensors begin."""
    device = lists[0][0].device
    addresses = tuple(tensor.data_ptr() for tensors in zip(*lists, strict=True) for tensor in tensors)
    build = _device_addresses if capturing(device) else _cached_addresses
    return build(device, current_stream(device), addresses)


@lru_cache(maxsize=64)
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
    buffer = torch.empty(plan.buffer_size, dtype=dtype, device=plan.entries.device)
    pieces = _split(buffer, plan.templates)
    return buffer, [pieces[place] for place in plan.places]


def pieces_of(buffer: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Tensors of these shapes over consecutive pieces of ``buffer``."""
    scalar = torch.empty((), dtype=buffer.dtype, device=buffer.device)
    return _split(buffer, [scalar.expand(shape) for shape in shapes])


def _split(buffer: Tensor, templates: Sequence[Tensor]) -> list[Tensor]:
    """No views for autograd: each piece may be changed in place without a word about the others."""
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return list(torch._C._nn.unflatten_dense_tensors(buffer, list(templates)))
