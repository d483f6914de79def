"""Clipping: ranges whose ends lie inside the weight, where that lowers the squared error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import functional
from ..reference.groups import grouped

# What is left of the ends' distances from the mean, in turn: of both, then of each. A whole weight's may be far out.
GROUP_FACTORS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
TENSOR_FACTORS = tuple(0.85**power for power in range(1, 25))


def least_error_ranges(
    weight: Tensor,
    widths: Tensor,
    ranges: Tensor,
    scheme: tuple[int, str],
    kept: Callable[[Tensor], Tensor] = lambda found: found,
) -> Tensor:
    """The ranges of least squared error among some that lie inside.

    Args:
        weight: any shape, finite.
        widths: uint8 ``[groups]``.
        ranges: its own, float32 ``[1, 2]`` or ``[groups, 2]``, see ``functional.weight_range``.
        scheme: the group size, and "tensor" or "group": whose ranges they are.
        kept: makes of ranges what a file keeps of them.
    """
    per_group = scheme[1] == "group"
    factors = GROUP_FACTORS if per_group else TENSOR_FACTORS
    best, least = ranges, _squared_errors(weight, widths, ranges, scheme)
    middle = _means(weight, scheme)[:, None].clamp(ranges[:, :1], ranges[:, 1:])
    for ends in ([True, True], [True, False], [False, True]):
        start, moving = best, torch.tensor(ends, dtype=torch.bool, device=ranges.device)
        for factor in factors:
            found = kept(torch.where(moving, middle + (start - middle) * factor, start))
            errors = _squared_errors(weight, widths, found, scheme)
            better = errors < least
            best, least = torch.where(better[:, None], found, best), torch.where(better, errors, least)
    return best


def _means(weight: Tensor, scheme: tuple[int, str]) -> Tensor:
    """float32 `[groups]`, or `[1]`: of the elements, in each group or all."""
    flat = weight.to(torch.float32).reshape(-1)
    if scheme[1] == "tensor":
        return flat.mean(0, keepdim=True, dtype=torch.float64).to(torch.float32)
    return grouped(flat, scheme[0], flat[-1]).mean(1)


def _squared_errors(weight: Tensor, widths: Tensor, ranges: Tensor, scheme: tuple[int, str]) -> Tensor:
    """float32 `[groups]`, or float64 `[1]` for a range of the whole weight."""
    group_size, range_scope = scheme
    rounded = functional.fake_quantize([weight], [widths], ranges, group_size=group_size, range_scope=range_scope)[0]
    errors = rounded.reshape(-1).to(torch.float32).sub_(weight.reshape(-1)).square_()
    return (
        grouped(errors, group_size, 0.0).sum(1) if range_scope == "group" else errors.sum(0, True, dtype=torch.float64)
    )
