"""Weights in pieces that stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...reference.groups import grouped, per_element

PIECE = 1 << 17  # elements: a float32 tensor of them takes 512 kB
FEW = 64  # elements of a group, up to which torch is slow at sums along it


def array_of(tensor: Tensor) -> NDArray[Any]:
    """numpy's view of a tensor on the CPU, of one that is not contiguous: of a copy. Not by ``tensor.numpy()``, behind
    which a storage can never again be resized, as ``fully_shard`` does with a weight's."""
    return np.from_dlpack(tensor.detach().contiguous())


class Piece(NamedTuple):
    """Elements ``begin … end - 1`` of a weight, which are whole groups, or of its only one."""

    begin: int
    end: int
    groups: slice


def pieces_of(count: int, group_size: int, device: torch.device) -> Iterator[Piece]:
    """The pieces of a weight; one piece where it does not lie on a CPU."""
    size = max(PIECE // max(group_size, 1), 1) * max(group_size, 1) if device.type == "cpu" else count
    for begin in range(0, count, max(size, 1)):
        end = min(begin + size, count)
        groups = slice(begin // group_size, -(-end // group_size)) if group_size else slice(0, 1)
        yield Piece(begin, end, groups)


def spread(per_group: Tensor, count: int, group_size: int) -> Tensor:
    """One value per group for each element, ``[groups]`` to ``[count]``; on a CPU by numpy, which takes a third of the
    time that torch takes for groups of few elements."""
    if not 1 < group_size < count or per_group.device.type != "cpu" or per_group.requires_grad:
        return per_element(per_group, count, group_size)
    return torch.from_numpy(np.repeat(array_of(per_group), group_size)[:count])


def group_sums(values: Tensor, group_size: int) -> Tensor:
    """Sums over the groups: ``[count]`` to ``[groups]``, of few elements in the values' dtype, else in float64.

    Of few by numpy: the sums of ``torch.mv`` change with the number of threads where torch has Intel's library.
    """
    rows = grouped(values, group_size, 0.0)
    if rows.shape[1] == 1:
        return rows[:, 0]
    if rows.shape[1] <= FEW and values.device.type == "cpu":
        array = array_of(rows)
        return torch.from_numpy(array @ np.ones(rows.shape[1], array.dtype))
    return rows.sum(1, dtype=torch.float64) if values.device.type != "mps" else rows.sum(1)
