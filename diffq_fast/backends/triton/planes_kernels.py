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


UNROLLED = tl.constexpr(8)  # rows whose loads are under way together
ROWS_UNPACKED = tl.constexpr(16)  # at most, by a program


@triton.jit
def _shifted_in(words, value, bit):
    """``words`` uint32 ``[planes, lanes]`` a bit further down, with bit ``bit`` [planes, 1] of each lane's ``value`` on
    top: two shifts."""
    if value.dtype.primitive_bitwidth == 64:
        found = (value[None, :] >> bit).to(tl.uint32)
    else:
        found = (value.to(tl.int32)[None, :] >> tl.minimum(bit, 31)).to(tl.uint32, bitcast=True)
    return (words >> 1) | (found << 31)


@triton.jit(do_not_specialize=["count", "cells"])
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
    ROWS: tl.constexpr = CONFIG.rows
    AT_ONCE: tl.constexpr = 32 if ROWS > 32 else ROWS
    for first in tl.static_range(0, ROWS, AT_ONCE):
        half = tl.full((CONFIG.planes, CONFIG.lanes), 0, tl.uint32)
        for some in range(0, AT_ONCE, UNROLLED):
            for row in tl.static_range(UNROLLED):
                position = start + (first + some + row) * columns
                value = tl.load(values_ptr + position, (cell < cells) & (position < count), 0)
                half = _shifted_in(half, value, bit)
        words |= (half >> (32 - AT_ONCE)).to(tl.int64) << first
    place = (block[None, :] * CONFIG.width + bit) * columns + (cell % columns)[None, :]
    exists = (bit < CONFIG.width) & (cell < cells)[None, :]
    tl.store(planes_ptr + place, words.to(planes_ptr.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["number"])
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
    lo, length = lo_and_length(ranges_ptr, cell * 0, None, False)
    words = tl.full((CONFIG.planes, CONFIG.lanes), 0, tl.int64)
    for first in tl.static_range(0, 64, 32):
        half = tl.full((CONFIG.planes, CONFIG.lanes), 0, tl.uint32)
        for some in range(0, 32, UNROLLED):
            for row in tl.static_range(UNROLLED):
                position = start + (first + some + row) * 32
                inside = (cell < cells) & (position < number)
                element, _ = element_and_group(position, inside, order_ptr, CONFIG.group_size, CONFIG.ordered)
                value = tl.load(weight_ptr + element, inside, 0).to(tl.float32)
                level = tl.where(inside, integer(rounded_level(value, lo, length, width, False)), 0)
                half = _shifted_in(half, level, bit)
        words |= half.to(tl.int64) << first
    place = (cell // 32 * CONFIG.width * 32 + cell % 32)[None, :] + bit * 32
    tl.store(planes_ptr + place, words, (bit < CONFIG.width) & (cell < cells)[None, :])


@triton.jit(do_not_specialize=["length", "cells"])
def unpack_planes_kernel(planes_ptr, values_ptr, length, cells, columns, CONFIG: tl.constexpr):
    """The inverse of :func:`pack_planes_kernel`.

    ``planes_ptr`` [blocks, width, columns], words of ROWS bits, read
    ``values_ptr`` [length] int16, written

    One program handles some rows of ``lanes`` columns.
    """
    ROWS: tl.constexpr = CONFIG.rows
    AT_ONCE: tl.constexpr = ROWS_UNPACKED if ROWS > ROWS_UNPACKED else ROWS
    PARTS: tl.constexpr = ROWS // AT_ONCE
    cell = (tl.program_id(0) // PARTS).to(tl.int64) * CONFIG.lanes + tl.arange(0, CONFIG.lanes)
    first = tl.program_id(0) % PARTS * AT_ONCE
    row = tl.arange(0, AT_ONCE)[:, None]
    block = cell // columns
    place = block * CONFIG.width * columns + cell % columns
    value = tl.full((AT_ONCE, CONFIG.lanes), 0, tl.uint32)
    for bit in tl.static_range(CONFIG.width - 1, -1, -1):
        word = tl.load(planes_ptr + place + bit * columns, cell < cells, 0)
        word = (word.to(tl.int64) >> first).to(tl.uint32)[None, :]
        value = (value << 1) | ((word << (31 - row)) >> 31)
    position = (block * (ROWS * columns) + cell % columns)[None, :] + (first + row) * columns
    tl.store(values_ptr + position, value.to(tl.int16), (cell < cells)[None, :] & (position < length))
