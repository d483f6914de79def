"""diffq's bit planes: value [block, row, column] puts its bit j into bit ``row`` of word [block, j,
column]."""

from __future__ import annotations

import triton
import triton.language as tl

from .export_kernels import element_and_group, offset_and_length, quantized


@triton.jit
def pack_planes_kernel(
    values, planes, count, cells, columns, NBITS: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """One program makes the words of LANES columns, of one block or of several; ``cells`` columns in all.

    ``values`` [count] of an integer type, read; ``planes`` [blocks, NBITS, columns] of ROWS bits, written;
    PLANES is NBITS rounded up to a power of two.
    """
    cell = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    block = cell // columns
    start = block * (ROWS * columns) + cell % columns
    bit = tl.arange(0, PLANES)[:, None]
    words = tl.zeros((PLANES, LANES), tl.int64)
    for row in range(ROWS):
        position = start + row * columns
        value = tl.load(values + position, (cell < cells) & (position < count), 0).to(tl.int64)
        words |= ((value[None, :] >> bit) & 1) << row
    place = (block[None, :] * NBITS + bit) * columns + (cell % columns)[None, :]
    tl.store(planes + place, words.to(planes.dtype.element_ty), (bit < NBITS) & (cell < cells)[None, :])


@triton.jit
def quantize_planes_kernel(
    weight, found, order, planes, count, cells, WIDTH: tl.constexpr, PLANES: tl.constexpr, GROUP: tl.constexpr,
    ORDERED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """:func:`pack_planes_kernel` of the ``count`` levels of one width, made from the weight on the way; blocks of 64
    rows and 32 columns.

    ``weight`` float32|bf16|f16, read; ``found`` float32 [1, 2], read; ``order`` int64, groups of this width, read
    unless ORDERED; ``planes`` int64 [blocks, WIDTH, 32], written.
    """
    cell = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    start = cell // 32 * 2048 + cell % 32
    bit = tl.arange(0, PLANES)[:, None]
    width = tl.full((LANES,), WIDTH, tl.int32)
    lo, length = offset_and_length(found, cell * 0, cell < cells, False)
    words = tl.zeros((PLANES, LANES), tl.int64)
    for row in range(64):
        position = start + row * 32
        inside = (cell < cells) & (position < count)
        element, _ = element_and_group(position, inside, order, GROUP, ORDERED)
        value = tl.load(weight + element, inside, 0).to(tl.float32)
        level = tl.where(inside, quantized(value, lo, length, width, False), 0).to(tl.int64)
        words |= ((level[None, :] >> bit) & 1) << row
    place = (cell // 32 * WIDTH * 32 + cell % 32)[None, :] + bit * 32
    tl.store(planes + place, words, (bit < WIDTH) & (cell < cells)[None, :])


@triton.jit
def unpack_planes_kernel(planes, values, length, columns, nbits, ROWS: tl.constexpr, TILE: tl.constexpr):
    """One program handles TILE values: ``planes`` [blocks, nbits, columns], read; ``values`` int16
    [length], written."""
    position = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = position < length
    block = position // (ROWS * columns)
    row = position // columns % ROWS
    place = block * nbits * columns + position % columns
    value = tl.zeros((TILE,), tl.int64)
    bit = 0
    while bit < nbits:
        word = tl.load(planes + place + bit * columns, inside, 0).to(tl.int64)
        value |= ((word >> row) & 1) << bit
        bit += 1
    tl.store(values + position, value.to(tl.int16), inside)
