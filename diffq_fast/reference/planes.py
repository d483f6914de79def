"""The oracle of packing values into bit planes: diffq's layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import per_element
from .sizes import MAX_WIDTH

PLANE_DTYPES = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}  # by rows: bits of a word


def pack_planes(values: Tensor, width: int, rows: int, columns: int) -> Tensor:
    """``[blocks, width, columns]``: bit j of value [k, r, c] becomes bit r of word [k, j, c]; zero-padded blocks."""
    flat = values.reshape(-1).to(torch.int64)
    block = rows * columns
    blocks = -(-flat.numel() // block) if block else 0
    flat = torch.nn.functional.pad(flat, (0, blocks * block - flat.numel()))
    cells = flat.view(blocks, rows, columns)
    shifts = torch.arange(rows, dtype=torch.int64, device=values.device).view(rows, 1)
    planes = [(((cells >> bit) & 1) << shifts).sum(1) for bit in range(width)]
    words = torch.stack(planes, dim=1) if planes else cells.new_zeros((blocks, 0, columns))
    return words.to(PLANE_DTYPES[rows])


def worst_value(values: Tensor) -> Tensor:
    """int64, 0-dim: the smallest value if it is negative, else the largest; 0 where there are none."""
    if not values.numel():
        return values.new_zeros((), dtype=torch.int64)
    lowest, highest = values.aminmax()
    return torch.where(lowest < 0, lowest, highest).to(torch.int64)


def pack_planes_by_width(levels: Tensor, widths: Tensor, group_size: int) -> list[Tensor]:
    """:func:`pack_planes` (64 rows of 32 columns) of the levels of each width 1 … 16, in group order."""
    flat = levels.reshape(-1)
    width_of = per_element(widths, flat.numel(), group_size)
    return [pack_planes(flat[width_of == width], width, 64, 32) for width in range(1, MAX_WIDTH + 1)]


def unpack_planes(planes: Tensor, length: int) -> Tensor:
    """int16 ``[length]``: inverse of :func:`pack_planes`."""
    blocks, width, columns = planes.shape
    rows = planes.element_size() * 8
    shifts = torch.arange(rows, dtype=torch.int64, device=planes.device).view(rows, 1)
    values = torch.zeros((blocks, rows, columns), dtype=torch.int64, device=planes.device)
    for bit in range(width):
        values |= ((planes[:, bit, None].to(torch.int64) >> shifts) & 1) << bit
    return values.reshape(-1)[:length].to(torch.int16)
