"""What is learned for weights that are in shards, whole: one gathering for all weights that a forward makes together.

Its gradient is the mean over the processes, by one reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .shards import Split, groups_of, is_sharded, split_dimensions


def gathered(tensors: Sequence[Tensor], *, averaged: bool) -> list[Tensor]:
    """All of what is learned for some weights, differentiable: one collective for those of one mesh.

    Args:
        tensors: learned parameters, ``[groups]`` or of no dimension; those that are no DTensors are given back.
        averaged: each process goes on with data of its own, and the gradient is the mean over all. Otherwise all go on
            alike, and each takes its part of the gradient that it has.
    """
    result = list(tensors)
    families: dict[Split, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if is_sharded(tensor) and len(split_dimensions(tensor)) > 1:
            result[index] = _GatheredTwice.apply(tensor, averaged)
        elif is_sharded(tensor):
            families.setdefault(Split.of(tensor), []).append(index)
    for split, members in families.items():
        shapes = [tensors[index].shape for index in members]
        parts = [tensors[index].to_local() for index in members]  # type: ignore[attr-defined]
        for index, made in zip(members, _Gathered.apply(split, shapes, averaged, *parts), strict=True):
            result[index] = made
    return result


class _Gathered(torch.autograd.Function):
    """Parts of tensors of one split, to the whole ones. Parts are as long as torch.chunk makes them, the last ones
    perhaps shorter or empty; they travel filled up to the longest."""

    @staticmethod
    def forward(
        ctx: Any, split: Split, shapes: Sequence[torch.Size], averaged: bool, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.split, ctx.averaged = split, averaged
        ctx.parts = [part.shape for part in parts]
        ctx.lengths = [-(-shape.numel() // split.parts) for shape in shapes]
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
