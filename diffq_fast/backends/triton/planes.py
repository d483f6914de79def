"""Launchers of diffq's bit planes; meanings and shapes: ``diffq_fast/_ops.py``."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ...reference.planes import PLANE_DTYPES, worst_value
from ...reference.sizes import MAX_WIDTH
from .. import default
from .launching import TYPES, launch
from .planes_kernels import (
    ROWS_UNPACKED,
    PlanesConfig,
    pack_planes_kernel,
    quantize_planes_kernel,
    unpack_planes_kernel,
)
from .widths import LevelsOfWidth, levels_by_width

LANES = 128
_WIDTHS = tuple(range(1, MAX_WIDTH + 1))
_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def pack_planes(values: Tensor, width: int, rows: int, columns: int) -> Tensor:
    values = (values if values.dtype in _INTEGERS else values.to(torch.int64)).contiguous()
    block = rows * columns
    blocks = -(-values.numel() // block) if block else 0
    planes = torch.empty((blocks, width, columns), dtype=PLANE_DTYPES[rows], device=values.device)
    cells = blocks * columns
    config = PlanesConfig(width, triton.next_power_of_2(width), rows, LANES)
    programs = -(-cells // LANES) if planes.numel() else 0
    launch(pack_planes_kernel, programs, values, planes, values.numel(), cells, columns, CONFIG=config)
    return planes


def pack_planes_seen(values: Tensor, width: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return pack_planes(values, width, rows, columns), worst_value(values)


def quantize_planes(weight, widths, ranges, group_size, level_counts):
    if weight.dtype not in TYPES:
        return default.quantize_planes(weight, widths, ranges, group_size, level_counts)
    count = weight.numel()
    by_width = {levels.width: levels for levels in levels_by_width(widths, group_size, count)}
    every = [by_width.get(width, LevelsOfWidth(width, 0, 0, None)) for width in _WIDTHS]
    if [levels.number for levels in every] != list(level_counts):
        raise ValueError(
            f"quantize_planes: expected level_counts, how many levels have 1, 2 … 16 bits, got {list(level_counts)}"
        )
    weight, ranges = weight.contiguous(), ranges.contiguous()
    return [_quantize_planes(weight, ranges, levels, group_size) for levels in every]


def _quantize_planes(weight: Tensor, ranges: Tensor, levels: LevelsOfWidth, group_size: int) -> Tensor:
    width, number = levels.width, levels.number
    cells = -(-number // 2048) * 32
    planes = torch.empty((cells // 32, width, 32), dtype=torch.int64, device=weight.device)
    ordered = levels.order is None
    config = PlanesConfig(width, triton.next_power_of_2(width), 64, LANES, 1 if ordered else group_size, ordered)
    arguments = weight, ranges, levels.order, planes, number, cells
    launch(quantize_planes_kernel, -(-cells // LANES), *arguments, CONFIG=config, enable_fp_fusion=False)
    return planes


def unpack_planes(planes: Tensor, length: int) -> Tensor:
    blocks, width, columns = planes.shape
    rows = planes.element_size() * 8
    length = min(length, blocks * rows * columns)
    values = torch.empty(length, dtype=torch.int16, device=planes.device)
    cells = blocks * columns if length else 0
    config = PlanesConfig(width, triton.next_power_of_2(width), rows, LANES)
    programs = -(-cells // LANES) * -(-rows // ROWS_UNPACKED.value)
    launch(unpack_planes_kernel, programs, planes.contiguous(), values, length, cells, columns, CONFIG=config)
    return values
