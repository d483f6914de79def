"""Which groups of a weight share one table of frequencies: classes, where they pay."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.sizes import group_count


def choose_classes(levels: Tensor, group_size: int) -> Tensor:
    """uint8 `[groups]`, 1 … 16: the class of each group of the flat, signed levels."""
    groups = group_count(levels.numel(), group_size)
    return torch.ones(groups, dtype=torch.uint8, device=levels.device)
