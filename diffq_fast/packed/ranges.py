"""Ranges that fit: group ranges in 16 bits, and ranges clipped where that lowers the squared error."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..quantizers.clipping import least_error_ranges
from ..reference.short_ranges import GROUPS_PER_UNIT, MOST_UNITS, decode_ranges, encode_ranges, nearest_codes
from ..reference.sizes import unit_count

__all__ = ["GROUPS_PER_UNIT", "RangeOptions", "ShortRanges", "fit_ranges"]


class RangeOptions(NamedTuple):
    """How ranges are chosen when a weight is packed.

    clip: move ends inwards where that lowers the sum of squared errors; what lies outside becomes the nearest end.
    groups_per_unit: keep lo and hi of each group as a byte each, in a unit that so many groups share; 0: as float32.
    """

    clip: bool = False
    groups_per_unit: int = 0


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
        return (least_error_ranges(weight, widths, ranges, scheme) if options.clip else ranges), None
    units = encode_ranges(ranges, options.groups_per_unit)[1]

    def nearest(found: Tensor) -> Tensor:
        return _short(found, units, options.groups_per_unit).ranges()

    outer = ShortRanges(*encode_ranges(ranges, options.groups_per_unit), options.groups_per_unit)
    if not options.clip:
        return outer.ranges(), outer
    clipped = least_error_ranges(weight, widths, outer.ranges(), scheme, nearest)
    made = _short(clipped, units, options.groups_per_unit)
    return made.ranges(), made


def _short(ranges: Tensor, units: Tensor, groups_per_unit: int) -> ShortRanges:
    """The nearest ranges of these units."""
    return ShortRanges(nearest_codes(ranges, units, groups_per_unit), units, groups_per_unit)
