"""diffq's bit planes: value [block, row, column] puts its bit j into bit ``row`` of word [block, j,
column]."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .levels import element_and_group, integer, lo_and_length, rounded_level


class PlanesConfig(NamedTuple):
    """What the kernels are compiled for: ``width`` planes, ``planes`` is that rounded up to a power of two; blocks of
    ``rows`` rows, the bits of a word. A program handles ``lanes`` columns. ``group_size`` and ``ordered`` (one width
    only) matter to levels that are made from a weight."""

    width: int
    planes: int
    rows: int
    lanes: int
    group_size: int = 0
    ordered: bool = True


@triton.jit
def pack_planes_kernel(values_ptr, planes_ptr, count, cells, columns, CONFIG: tl.constexpr):
    """Words of ``count`` values; ``cells``: columns of all blocks together.

    ``values_ptr`` [count] uint8|int16|int32|int64, read
    ``planes_ptr`` [blocks, width, columns], words of ``rows`` bits, written

    One program handles ``lanes`` columns, of one block or of several.
    """
    cell = tl.program_id(0).to(tl.int64) * CONFIG.lanes + tl.arange(0, CONFIG.lanes)
    block = cell // columns
    start = block * (CONFIG.rows * columns) + cell % columns
    bit = tl.arange(0, CONFIG.planes)[:, None]
    words = tl.full((CONFIG.planes, CONFIG.lanes), 0, tl.int64)
    for row in range(CONFIG.rows):
        position = start + row * columns
        value = tl.load(values_ptr + position, (cell < cells) & (position < count), 0).to(tl.int64)
        words |= ((value[None, :] >> bit) & 1) << row
    place = (block[None, :] * CONFIG.width + bit) * columns + (cell % columns)[None, :]
    exists = (bit < CONFIG.width) & (cell < cells)[None, :]
    tl.store(planes_ptr + place, words.to(planes_ptr.dtype.element_ty), exists)


@triton.jit
def quantize_planes_kernel(weight_ptr, ranges_ptr, order_ptr, planes_ptr, number, cells, CONFIG: tl.constexpr):
    """:func:`pack_planes_kernel` of the ``number`` levels of one width, made from the weight on the way; blocks of 64
    rows and 32 columns.

    ``weight_ptr`` [elements] float32|bf16|f16, read
    ``ranges_ptr`` [1, 2] float32, read
    ``order_ptr`` [groups of this width] int64, read unless ``ordered``
    ``planes_ptr`` [blocks, width, 32] int64, written

    One program handles ``lanes`` columns.
    """
    cell = tl.program_id(0).to(tl.int64) * CONFIG.lanes + tl.arange(0, CONFIG.lanes)
    start = cell // 32 * 2048 + cell % 32
    bit = tl.arange(0, CONFIG.planes)[:, None]
    width = tl.full((CONFIG.lanes,), CONFIG.width, tl.int32)
    lo, length = lo_and_length(ranges_ptr, cell * 0, cell < cells, False)
    words = tl.full((CONFIG.planes, CONFIG.lanes), 0, tl.int64)
    for row in range(64):
        position = start + row * 32
        inside = (cell < cells) & (position < number)
        element, _ = element_and_group(position, inside, order_ptr, CONFIG.group_size, CONFIG.ordered)
        value = tl.load(weight_ptr + element, inside, 0).to(tl.float32)
        level = tl.where(inside, integer(rounded_level(value, lo, length, width, False)), 0).to(tl.int64)
        words |= ((level[None, :] >> bit) & 1) << row
    place = (cell // 32 * CONFIG.width * 32 + cell % 32)[None, :] + bit * 32
    tl.store(planes_ptr + place, words, (bit < CONFIG.width) & (cell < cells)[None, :])


@triton.jit
def unpack_planes_kernel(planes_ptr, values_ptr, length, columns, width, ROWS: tl.constexpr, TILE: tl.constexpr):
    """The inverse of :func:`pack_planes_kernel`.

    ``planes_ptr`` [blocks, width, columns], words of ROWS bits, read
    ``values_ptr`` [length] int16, written

    One program handles TILE values.
    """
    position = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = position < length
    block = position // (ROWS * columns)
    row = position // columns % ROWS
    place = block * width * columns + position % columns
    value = tl.zeros((TILE,), tl.int64)
    bit = 0
    while bit < width:
        word = tl.load(planes_ptr + place + bit * columns, inside, 0).to(tl.int64)
        value |= ((word >> row) & 1) << bit
        bit += 1
    tl.store(values_ptr + position, value.to(tl.int16), inside)
