"""Groups of a weight: consecutive elements of its row-major flattening, the last group perhaps shorter.

``group_size`` 0 is one group. Floats are computed in float32, or in float64 for a float64 weight.
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_element(per_group: Tensor, count: int, group_size: int) -> Tensor:
    """Spread one value per group over the group's elements: ``[groups] -> [count]``."""
    if group_size == 1:
        return per_group
    if group_size == 0 or group_size >= count:  # one group; memory by the elements there are
        return per_group.expand(count)
    return per_group.repeat_interleave(group_size)[:count]


def grouped(flat: Tensor, group_size: int, fill: Tensor | float) -> Tensor:
    """``[count] -> [groups, group_size]``, the ragged last group filled up with ``fill``."""
    count = max(flat.numel(), 1)
    size = min(group_size or count, count)
    missing = -flat.numel() % size
    if missing:
        padding = fill.expand(missing) if isinstance(fill, Tensor) else flat.new_full((missing,), fill)
        flat = torch.cat([flat, padding])
    return flat.view(-1, size)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype a weight's arithmetic is done in."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def flattened(weight: Tensor) -> Tensor:
    return weight.to(compute_dtype(weight)).reshape(-1)
