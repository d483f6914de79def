"""Values packed into bit planes, and back."""

from __future__ import annotations

from torch import Tensor

from ...reference import planes as reference
from ...reference.quantize import quantize
from .registration import kernel


@kernel
def pack_planes(values: Tensor, width: int, rows: int, columns: int) -> Tensor:
    return reference.pack_planes(values, width, rows, columns)


@kernel
def pack_planes_seen(values: Tensor, width: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return reference.pack_planes(values, width, rows, columns), reference.worst_value(values)


@kernel
def quantize_planes(weight, widths, ranges, group_size, level_counts):
    levels = quantize(weight, widths, ranges, group_size)
    return reference.pack_planes_by_width(levels, widths, group_size)


@kernel
def unpack_planes(planes: Tensor, length: int) -> Tensor:
    return reference.unpack_planes(planes, length)
