"""The oracle of ``weight_range``: smallest and largest elements, and where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import flattened, grouped


def weight_range(weight: Tensor, group_size: int, per_group: bool) -> Tensor:
    """``[1, 2]`` or, per group, ``[groups, 2]``: smallest and largest element. Differentiable, ties share equally."""
    flat = flattened(weight)
    if flat.numel() == 0:
        return flat.new_zeros((0 if per_group else 1, 2))
    groups = grouped(flat, group_size, flat[-1]) if per_group else flat.view(1, -1)
    return torch.stack([groups.amin(1), groups.amax(1)], dim=1)


def extremes(weight: Tensor, ranges: Tensor) -> Tensor:
    """int64 ``[1, 4]``: first index of the minimum and of the maximum, how many elements equal each; 0 for NaN."""
    flat = flattened(weight)
    if flat.numel() == 0:
        return torch.zeros((1, 4), dtype=torch.int64, device=weight.device)
    counts = [(flat == limit).sum() for limit in ranges[0]]
    places = torch.stack([flat.argmin(), flat.argmax(), *counts]).view(1, 4)
    return places.masked_fill(ranges.isnan().any(), 0)
