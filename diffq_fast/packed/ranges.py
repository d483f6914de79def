"""Ranges that fit: group ranges in 16 bits, and ranges clipped where that lowers the squared error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import functional
from ..reference.groups import grouped
from ..reference.short_ranges import MOST_UNITS, decode_ranges, encode_ranges, unit_of_groups
from ..reference.sizes import unit_count

GROUPS_PER_UNIT = 16  # by default: 18 bits a group, all told
# What is left of the ends' distances from the mean, in turn: of both, then of each. A whole weight's may be far out.
GROUP_FACTORS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
TENSOR_FACTORS = tuple(0.85**power for power in range(1, 25))


class RangeOptions(NamedTuple):
    """How ranges are chosen when a weight is packed.

    clip: move ends inwards where that lowers the sum of squared errors; what lies outside becomes the nearest end.
    groups_per_unit: keep lo and hi of each group as a byte each, in a unit that so many groups share; 0: as float32.
    """

    clip: bool = False
    groups_per_unit: int = 0


def unsound_ranges(ranges: Tensor, range_scope: str) -> str | None:
    """What a file's ranges have to be and these are not; None where they are. ``ranges``: `[..., 2]`, or scales."""
    if range_scope == "scale":
        return None if bool(torch.isfinite(ranges).all()) else "a finite scale"
    length = ranges[..., 1] - ranges[..., 0]
    if bool((torch.isfinite(length) & (length >= 0)).all()):
        return None
    return "ranges lo <= hi, finite and no further apart than float32 can hold"


class ShortRanges(NamedTuple):
    """Ranges as a file keeps them: int8 `[groups, 2]`, and a float32 unit for each `groups_per_unit` groups."""

    codes: Tensor
    units: Tensor
    groups_per_unit: int

    def ranges(self) -> Tensor:
        """float32 `[groups, 2]`: code * unit."""
        return decode_ranges(self.codes, self.units, self.groups_per_unit)

    def data(self) -> Tensor:
        """uint8, flat: the units, then the codes."""
        parts = self.units.cpu().contiguous().numpy().astype("<f4").view(np.uint8), self.codes.cpu().numpy()
        return torch.from_numpy(np.concatenate([part.reshape(-1).view(np.uint8) for part in parts]))

    def to(self, device: torch.device | str) -> ShortRanges:
        return ShortRanges(self.codes.to(device), self.units.to(device), self.groups_per_unit)


def short_ranges_from_data(data: Tensor, groups: int, groups_per_unit: int) -> ShortRanges:
    """The inverse of :meth:`ShortRanges.data`; ValueError where a unit or a code cannot be."""
    values = data.numpy()
    place = 4 * unit_count(groups, groups_per_unit)
    units = torch.from_numpy(values[:place].copy().view("<f4").astype(np.float32))
    codes = torch.from_numpy(values[place:].copy().view(np.int8)).view(-1, 2)
    made = ShortRanges(codes, units, groups_per_unit)
    if not bool((torch.isfinite(units) & (units >= 0)).all()):
        raise ValueError("expected units that are finite and not negative")
    if bool((codes < -MOST_UNITS).any() or (codes[:, 0] > codes[:, 1]).any()):
        raise ValueError(f"expected codes lo <= hi from -{MOST_UNITS} to {MOST_UNITS}")
    return made


def fit_ranges(
    weight: Tensor, widths: Tensor, ranges: Tensor, scheme: tuple[int, str], options: RangeOptions
) -> tuple[Tensor, ShortRanges | None]:
    """The ranges to pack a weight with.

    Args:
        weight: any shape, finite.
        widths: uint8 `[groups]`.
        ranges: its own, float32 `[1, 2]` or `[groups, 2]`, see ``functional.weight_range``.
        scheme: the group size, and "tensor" or "group": whose ranges they are.
        options: what is to be done.

    Returns:
        ranges like those given, and how they are kept, if not as they are.
    """
    if options.groups_per_unit == 0:
        return (_clipped(weight, widths, ranges, scheme, lambda found: found) if options.clip else ranges), None
    units = encode_ranges(ranges, options.groups_per_unit)[1]

    def nearest(found: Tensor) -> Tensor:
        return _short(found, units, options.groups_per_unit).ranges()

    outer = ShortRanges(*encode_ranges(ranges, options.groups_per_unit), options.groups_per_unit)
    if not options.clip:
        return outer.ranges(), outer
    clipped = _clipped(weight, widths, outer.ranges(), scheme, nearest)
    made = _short(clipped, units, options.groups_per_unit)
    return made.ranges(), made


def _short(ranges: Tensor, units: Tensor, groups_per_unit: int) -> ShortRanges:
    """The nearest ranges of these units."""
    of_group = unit_of_groups(units, len(ranges), groups_per_unit)
    codes = torch.where(of_group > 0, ranges / of_group, 0.0).round().clamp(-MOST_UNITS, MOST_UNITS)
    return ShortRanges(codes.to(torch.int8), units, groups_per_unit)


def _clipped(
    weight: Tensor, widths: Tensor, ranges: Tensor, scheme: tuple[int, str], kept: Callable[[Tensor], Tensor]
) -> Tensor:
    """The ranges of least squared error among some that lie inside; `kept` makes of ranges what the file keeps."""
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
