"""The oracle of ``quantize`` and ``dequantize``, for one weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import step_from_bits
from .groups import per_element
from .sizes import MAX_WIDTH

PACKABLE = (torch.float32, torch.float16, torch.bfloat16)  # dtypes of a packed weight: levels are made in float32


def quantize(weight: Tensor, widths: Tensor, ranges: Tensor, group_size: int) -> Tensor:
    """int32 levels ``round(((w - lo) / (hi - lo)) / u)``, ``u = 1 / (2**width - 1)``, in the weight's shape."""
    flat = weight.to(torch.float32).reshape(-1)
    count = flat.numel()
    lo, length = _offset_and_length(ranges, count, group_size)
    step, highest = (per_element(each, count, group_size) for each in steps_and_highest_levels(widths))
    return nearest_levels(flat, (lo, length), (step, highest)).view(weight.shape)


def nearest_levels(
    flat: Tensor, offset_and_length: tuple[Tensor, Tensor], step_and_highest: tuple[Tensor, Tensor]
) -> Tensor:
    """int32 levels of elements, of whose ranges and widths the values are given for each element, or for all."""
    (lo, length), (step, highest) = offset_and_length, step_and_highest
    levels = torch.round(((flat - lo) / length) / step)
    levels = torch.where(length == 0, 0.0, levels).nan_to_num(0.0).clamp(min=0).minimum(highest)
    return levels.to(torch.int32)


def dequantize(levels: Tensor, widths: Tensor, ranges: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    """``level * u * (hi - lo) + lo`` in float32, then cast to ``dtype``; the levels' shape."""
    flat = levels.reshape(-1).to(torch.float32)
    lo, length = _offset_and_length(ranges, flat.numel(), group_size)
    step = per_element(steps_and_highest_levels(widths)[0], flat.numel(), group_size)
    return (flat * step * length + lo).view(levels.shape).to(dtype)


def steps_and_highest_levels(widths: Tensor) -> tuple[Tensor, Tensor]:
    """float32 ``[groups]`` each. A width above 16 counts as 16; one of 0 has level 0 alone, and so the weight lo."""
    bits = widths.to(torch.float32).clamp(max=MAX_WIDTH)
    return step_from_bits(bits.clamp(min=1)), 2**bits - 1


def _offset_and_length(ranges: Tensor, count: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Minimum and length of the range for each element, from ``[1, 2]`` or ``[groups, 2]`` ranges."""
    lo, length = ranges[:, 0], ranges[:, 1] - ranges[:, 0]
    if ranges.shape[0] == 1:
        return lo.expand(count), length.expand(count)
    return per_element(lo, count, group_size), per_element(length, count, group_size)
