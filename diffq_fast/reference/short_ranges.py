"""The oracle of short ranges: lo and hi of each group as a byte each, in a unit that some groups share."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_UNITS = 127  # an end of a range is from -127 to 127 units
GROUPS_PER_UNIT = 16  # where nothing else is said: 18 bits a group, all told


def unit_of_groups(units: Tensor, groups: int, groups_per_unit: int) -> Tensor:
    """The unit of each group, ``[groups, 1]``."""
    return units[torch.arange(groups, dtype=torch.int64, device=units.device) // groups_per_unit, None]


def decode_ranges(codes: Tensor, units: Tensor, groups_per_unit: int) -> Tensor:
    """float32 ranges ``[groups, 2]``: code * unit, rounded once. codes: int8 ``[groups, 2]``; units: float32."""
    return codes.to(torch.float32) * unit_of_groups(units, len(codes), groups_per_unit)


def units_of_ranges(ranges: Tensor, groups_per_unit: int) -> Tensor:
    """float32: for each ``groups_per_unit`` groups the largest end over 127, so that end is exact but for rounding.

    The units of what :func:`decode_ranges` makes of :func:`nearest_codes` are these units again, to the bit.
    """
    together = min(groups_per_unit, max(len(ranges), 1))
    ends = torch.nn.functional.pad(ranges.abs().amax(1), (0, -len(ranges) % together)).view(-1, together)
    return ends.amax(1) / MOST_UNITS


def encode_ranges(ranges: Tensor, groups_per_unit: int) -> tuple[Tensor, Tensor]:
    """int8 codes ``[groups, 2]`` and float32 units of the narrowest short ranges around ``ranges`` ``[groups, 2]``."""
    units = units_of_ranges(ranges, groups_per_unit)
    quotients = _in_units(ranges, units, groups_per_unit)
    codes = torch.stack([quotients[:, 0].floor(), quotients[:, 1].ceil()], dim=1)
    return codes.clamp(-MOST_UNITS, MOST_UNITS).to(torch.int8), units


def nearest_codes(ranges: Tensor, units: Tensor, groups_per_unit: int) -> Tensor:
    """int8 codes ``[groups, 2]`` of the short ranges of these units that are nearest to ``ranges``."""
    codes = _in_units(ranges, units, groups_per_unit).round().clamp(-MOST_UNITS, MOST_UNITS)
    return codes.nan_to_num(0.0).to(torch.int8)


def _in_units(ranges: Tensor, units: Tensor, groups_per_unit: int) -> Tensor:
    of_group = unit_of_groups(units, len(ranges), groups_per_unit)
    return torch.where(of_group > 0, ranges / of_group, 0.0)
