"""Values packed into bit planes, and back.

The planes of 64 rows, which diffq's states have, are made on a CPU with numpy: sixteen rows of 16-bit values, four
side by side in a word, are transposed as matrices of bits, in four steps of exchanging half of them (H. S. Warren,
Hacker's Delight, section 7-3). A value then costs about three operations on a word, whatever its width.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...reference import planes as reference
from ...reference.sizes import MAX_WIDTH
from .pieces import array_of
from .quantize import quantize
from .registration import kernel

ROWS, LANES = 64, 4  # of a block; 16-bit values in a word
BLOCKS = 64  # blocks of 2,048 values that are transposed at once
EACH_LANE = 0x0001000100010001
EXCHANGES = ((8, 0x00FF), (4, 0x0F0F), (2, 0x3333), (1, 0x5555))

Words = NDArray[np.uint64]


@kernel
def pack_planes(values: Tensor, width: int, rows: int, columns: int) -> Tensor:
    if rows != ROWS or not columns or columns % LANES or not 0 < width <= MAX_WIDTH or not _takes(values):
        return reference.pack_planes(values, width, rows, columns)
    flat = array_of(values).reshape(-1)
    block = rows * columns
    made = np.empty((-(-len(flat) // block), width, columns), dtype=np.int64)
    for first in range(0, len(made), BLOCKS):
        cells = flat[first * block : (first + BLOCKS) * block].astype(np.uint16)
        if len(cells) % block:
            cells = np.pad(cells, (0, -len(cells) % block))
        cells = cells.reshape(-1, LANES, 16, columns)
        rows_of_cells = np.ascontiguousarray(cells.transpose(2, 0, 1, 3)).view(np.uint64).reshape(16, -1)
        planes = _planes_of_rows(rows_of_cells, width)[:width].view(np.uint16)
        planes = planes.reshape(width, len(cells), LANES, columns).transpose(1, 0, 3, 2)
        made[first : first + BLOCKS] = np.ascontiguousarray(planes).view(np.int64)[..., 0]
    return torch.from_numpy(made)


def _takes(values: Tensor) -> bool:
    """Whether numpy can read it, and a word of it begins with its first value."""
    return values.device.type == "cpu" and sys.byteorder == "little"


def _planes_of_rows(rows: Words, width: int) -> Words:
    """Bit j of row r becomes bit r of row j, in each 16-bit lane. Of narrow values fewer rows are left: half of their
    bits are zero, so that two rows go into one."""
    for distance, mask in EXCHANGES:
        if width > distance:
            _exchange(rows, distance, mask)
        else:
            low = np.uint64(mask * EACH_LANE)
            rows = (rows[:distance] & low) | ((rows[distance:] & low) << np.uint64(distance))
    return rows


def _rows_of_planes(planes: Words, width: int) -> Words:
    """The inverse: 16 rows."""
    for distance, mask in reversed(EXCHANGES):
        if width > distance:
            _exchange(planes, distance, mask)
        else:
            low = np.uint64(mask * EACH_LANE)
            planes = np.concatenate([planes & low, (planes >> np.uint64(distance)) & low])
    return planes


def _exchange(rows: Words, distance: int, mask: int) -> None:
    """Exchange the upper bits of some rows with the lower ones of those ``distance`` further down."""
    pairs = rows.reshape(-1, 2, distance, rows.shape[1])
    upper, lower, shift = pairs[:, 0], pairs[:, 1], np.uint64(distance)
    swapped = upper >> shift
    swapped ^= lower
    swapped &= np.uint64(mask * EACH_LANE)
    lower ^= swapped
    swapped <<= shift
    upper ^= swapped


@kernel
def pack_planes_seen(values: Tensor, width: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return pack_planes(values, width, rows, columns), reference.worst_value(values)


@kernel
def quantize_planes(weight, widths, ranges, group_size, level_counts):
    levels = quantize([weight], [widths], ranges, group_size, False)[0].reshape(-1)
    size = group_size or max(levels.numel(), 1)
    if not _takes(levels) or levels.numel() % size or size == 1:
        return reference.pack_planes_by_width(levels, widths, group_size)
    groups = levels.to(torch.int16).view(-1, size)
    order, ends = widths.argsort(stable=True), np.cumsum(level_counts) // size
    return [
        pack_planes(groups[order[end - count // size : end]], width, ROWS, 32)
        for width, (count, end) in enumerate(zip(level_counts, ends.tolist(), strict=True), 1)
    ]


@kernel
def unpack_planes(planes: Tensor, length: int) -> Tensor:
    blocks, width, columns = planes.shape
    sound = planes.dtype == torch.int64 and columns > 0 and columns % LANES == 0 and 0 < width <= MAX_WIDTH
    if not sound or not _takes(planes):
        return reference.unpack_planes(planes, length)
    words = array_of(planes)
    made = np.empty((blocks, LANES, 16, columns), dtype=np.int16)
    for first in range(0, blocks, BLOCKS):
        lanes = words[first : first + BLOCKS].view(np.uint16).reshape(-1, width, columns, LANES)
        rows = np.zeros((_rows_kept(width), len(lanes), LANES, columns), dtype=np.uint16)
        rows[:width] = lanes.transpose(1, 0, 3, 2)
        values = _rows_of_planes(rows.view(np.uint64).reshape(len(rows), -1), width).view(np.int16)
        made[first : first + BLOCKS] = values.reshape(16, len(lanes), LANES, columns).transpose(1, 2, 0, 3)
    return torch.from_numpy(made.reshape(-1)[:length])


def _rows_kept(width: int) -> int:
    """1, 2, 4, 8 or 16: the fewest that hold so many planes."""
    return 1 << (width - 1).bit_length()
