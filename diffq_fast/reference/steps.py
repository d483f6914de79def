"""Weights that are whole multiples of their group's step."""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import compute_dtype, per_element
from .level_code import HIGHEST_VALUE


def levels_of_steps(weight: Tensor, steps: Tensor, group_size: int) -> Tensor:
    """float levels ``round(weight / step)`` in the weight's shape, half to even, within 16 bits, never -0."""
    levels = (in_steps(weight, steps, group_size)).round().clamp(-HIGHEST_VALUE, HIGHEST_VALUE) + 0.0
    return levels.view(weight.shape)


def round_to_steps(weight: Tensor, steps: Tensor, group_size: int, dtype: torch.dtype | None = None) -> Tensor:
    """``level * step``, rounded to float32, then to ``dtype`` (None: the weight's)."""
    levels = levels_of_steps(weight, steps, group_size).to(torch.float32)
    flat, spread = _by_group(levels, steps.to(torch.float32), group_size)
    return (flat * spread).view(weight.shape).to(dtype or weight.dtype)


def in_steps(weight: Tensor, steps: Tensor, group_size: int) -> Tensor:
    """``weight / step``, not rounded: of one dimension, or of a row for each group."""
    flat = weight.to(compute_dtype(weight)).reshape(-1)
    flat, spread = _by_group(flat, steps.to(flat.dtype), group_size)
    return flat / spread


def _by_group(flat: Tensor, steps: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Elements and steps in shapes that fit each other."""
    if group_size > 1 and flat.numel() % group_size == 0:
        return flat.reshape(-1, group_size), steps[:, None]
    return flat.reshape(-1), per_element(steps, flat.numel(), group_size)
