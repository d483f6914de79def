"""What is in shards, whole: what is learned for all weights that a forward makes together, and weights for a size, by
one gathering.

Its gradient is the mean over the processes, by one reduction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .selection import QuantizedParameter
from .shards import Split, groups_of, is_managed, is_sharded, split_dimensions

BUCKET_BYTES = 64 * 2**20


def gathered(tensors: Sequence[Tensor], *, averaged: bool) -> list[Tensor]:
    """All of each tensor, differentiable: one collective for about ``BUCKET_BYTES`` of one mesh and dtype.

    Args:
        tensors: learned parameters or weights; those that are no DTensors are given back.
        averaged: each process goes on with data of its own, and the gradient is the mean over all. Otherwise all go on
            alike, and each takes its part of the gradient that it has.
    """
    result = list(tensors)
    families: dict[tuple[Split, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if is_sharded(tensor) and len(split_dimensions(tensor)) > 1:
            result[index] = _GatheredTwice.apply(tensor, averaged)
        elif is_sharded(tensor):
            families.setdefault((Split.of(tensor), tensor.dtype), []).append(index)
    for (split, _), members in families.items():
        for bucket in buckets([tensors[index] for index in members]):
            own = [members[place] for place in bucket]
            made = _gathered_bucket(split, [tensors[index] for index in own], averaged)
            for index, each in zip(own, made, strict=True):
                result[index] = each
    return result


def gathered_for_forward(entries: Sequence[QuantizedParameter]) -> list[Tensor]:
    """What is learned for these weights, as a training forward reads it: under ``fully_shard`` each process goes on
    with data of its own, under tensor parallelism all go on alike."""
    logits: dict[QuantizedParameter, Tensor] = {}
    for averaged in (False, True):
        members = [entry for entry in entries if is_managed(entry.module) == averaged]
        found = gathered([entry.logit for entry in members], averaged=averaged)
        logits.update(zip(members, found, strict=True))
    return [logits[entry] for entry in entries]


def whole_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All of each tensor, without gradient: every process of their mesh must ask."""
    with torch.no_grad():
        return gathered([tensor.detach() for tensor in tensors], averaged=False)


def buckets(tensors: Sequence[Tensor]) -> Iterator[range]:
    """The indices of the tensors in their order, as many at a time as are ``BUCKET_BYTES``, or one that is more."""
    begin = size = 0
    for index, tensor in enumerate(tensors):
        own = tensor.numel() * tensor.element_size()
        if size and size + own > BUCKET_BYTES:
            yield range(begin, index)
            begin, size = index, 0
        size += own
    if len(tensors) > begin:
        yield range(begin, len(tensors))


def _gathered_bucket(split: Split, tensors: Sequence[Any], averaged: bool) -> list[Tensor]:
    """DTensors of one split and dtype. Those that are split along another dimension than their first travel turned."""
    turns = [0 if split.dimension is None else tensor.placements[split.dimension].dim for tensor in tensors]
    pairs = [*zip(tensors, turns, strict=True)]
    parts = [tensor.to_local().movedim(turn, 0) if turn else tensor.to_local() for tensor, turn in pairs]
    shapes = [_turned(tensor.shape, turn) for tensor, turn in pairs]
    made = _Gathered.apply(split, shapes, averaged, *parts)
    return [each.movedim(0, turn) if turn else each for each, turn in zip(made, turns, strict=True)]


def _turned(shape: torch.Size, turn: int) -> torch.Size:
    """A tensor's shape when its dimension ``turn`` has become the first one."""
    return torch.Size([*shape[turn : turn + 1], *shape[:turn], *shape[turn + 1 :]])


class _Gathered(torch.autograd.Function):
    """Parts of tensors of one split, to the whole ones. Parts have as many rows as torch.chunk makes them, the last
    ones perhaps fewer or none; they travel filled up to the longest."""

    @staticmethod
    def forward(
        ctx: Any, split: Split, shapes: Sequence[torch.Size], averaged: bool, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.split, ctx.averaged = split, averaged
        ctx.parts = [part.shape for part in parts]
        ctx.lengths = [_longest_part(shape, split.parts) for shape in shapes]
        if split.dimension is None:
            return tuple(part.view_as(part) for part in parts)
        mine = parts[0].new_zeros(sum(ctx.lengths))
        for room, part in zip(mine.split(ctx.lengths), parts, strict=True):
            room[: part.numel()].copy_(part.reshape(-1))
        rows = mine.new_empty((split.parts, mine.numel()))
        _all_gather(rows, mine, split.mesh.get_group(split.dimension))
        columns = rows.split(ctx.lengths, dim=1)
        pairs = zip(columns, shapes, strict=True)
        return tuple(column.reshape(-1)[: shape.numel()].view(shape) for column, shape in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        split, lengths = ctx.split, ctx.lengths
        rows = grads[0].new_zeros((split.parts, sum(lengths)))
        for room, grad in zip(rows.split(lengths, dim=1), grads, strict=True):
            flat = grad.new_zeros(room.numel())
            flat[: grad.numel()].copy_(grad.reshape(-1))
            room.copy_(flat.view(room.shape))
        mine = rows[split.own]
        if ctx.averaged:
            if split.dimension is not None:
                mine = torch.empty_like(mine)
                _reduce_scatter(mine, rows, split.mesh.get_group(split.dimension))
            for group in split.others:
                torch.distributed.all_reduce(mine, group=group)
            mine = mine / split.mesh.size()
        pairs = zip(mine.split(lengths), ctx.parts, strict=True)
        return (None, None, None, *[room[: shape.numel()].reshape(shape).clone() for room, shape in pairs])


def _longest_part(shape: torch.Size, parts: int) -> int:
    """Elements of the longest of so many parts of a tensor, which is split by rows."""
    return -(-shape[0] // parts) * shape[1:].numel() if shape else 1


class _GatheredTwice(torch.autograd.Function):
    """A DTensor that ``fully_shard`` and tensor parallelism both split, to the whole one: by itself, since torch lays
    out its parts."""

    @staticmethod
    def forward(ctx: Any, tensor: Any, averaged: bool) -> Tensor:
        ctx.mesh, ctx.placements, ctx.averaged = tensor.device_mesh, tensor.placements, averaged
        return tensor.full_tensor()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        from torch.distributed.tensor import distribute_tensor

        if ctx.averaged:
            grad = grad.clone()
            for group in groups_of(ctx.mesh):
                torch.distributed.all_reduce(grad, group=group)
            grad = grad / ctx.mesh.size()
        return distribute_tensor(grad, ctx.mesh, ctx.placements, src_data_rank=None), None


def _all_gather(rows: Tensor, mine: Tensor, group: Any) -> None:
    """``all_gather_into_tensor``, under the name that this torch has for it."""
    gather = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
    gather(rows.view(-1), mine, group=group)


def _reduce_scatter(mine: Tensor, rows: Tensor, group: Any) -> None:
    """``reduce_scatter_tensor``, under the name that this torch has for it."""
    scatter = getattr(torch.distributed, "reduce_scatter_single", None) or torch.distributed.reduce_scatter_tensor
    scatter(mine, rows.view(-1), group=group)
