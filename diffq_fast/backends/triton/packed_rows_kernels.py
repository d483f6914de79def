"""Rows that stay packed (``diffq_fast/reference/packed_rows.py``): unpacked, or multiplied as they are.

A program takes a row a tile of segments at a time. Where a segment begins is the sum of the sizes of those before it,
so widths are data: no row needs a table of places, and no width a kernel of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .levels import step_of_width


class RowsConfig(NamedTuple):
    """What the kernels are compiled for: rows of ``row_segments`` segments of ``segment`` elements. A tile has ``span``
    elements of each of ``segments`` segments. ``rows``: of the weight, that a program multiplies; ``vectors``: at once,
    of one row. One of both is 1. ``one_scale``: of all rows. ``centred``, ``level_count``: as :class:`.RowForm` has
    them."""

    row_segments: int
    segment: int
    segments: int
    span: int
    rows: int
    vectors: int
    one_scale: bool
    centred: bool
    level_count: int


class Rows(NamedTuple):
    """``count`` packed rows: int32 words of data; where rows begin in it, int32 ``[count + 1]``; their widths, uint8
    ``[count, bytes]``; scales and offsets, float32, of ``group_segments`` segments each, offsets unless ``centred``."""

    words_ptr: Any
    starts_ptr: Any
    widths_ptr: Any
    scales_ptr: Any
    offsets_ptr: Any
    word_count: Any
    count: Any
    group_segments: Any


class Tile(NamedTuple):
    """What the segments of a tile have, each ``[rows, segments, 1]``: where they begin, in bytes behind their row's
    start; their widths, scales, offsets and steps; and which exist."""

    begin: Any
    width: Any
    scale: Any
    offset: Any
    step: Any
    inside: Any


@triton.jit
def _widths_of(rows, row, segment, inside, CONFIG: tl.constexpr):
    """int32 widths of ``segment`` of ``row``, 0 where there is none."""
    half_bytes = tl.load(rows.widths_ptr + row * ((CONFIG.row_segments + 1) // 2) + segment // 2, inside, 0).to(
        tl.int32
    )
    return tl.where(inside, ((half_bytes >> (segment % 2) * 4) & 15) + 1, 0)


@triton.jit
def _scale_and_step(rows, row, segment, width, inside, CONFIG: tl.constexpr):
    """Of each segment: scale, offset and how much of the scale a level is."""
    group = row * CONFIG.row_segments + segment
    group = group * 0 if CONFIG.one_scale else group // rows.group_segments
    scale = tl.load(rows.scales_ptr + group, inside, 0.0)
    if CONFIG.centred:
        return scale, scale, scale
    offset = tl.load(rows.offsets_ptr + group, inside, 0.0)
    if CONFIG.level_count:
        highest = tl.full(scale.shape, CONFIG.level_count - 1, tl.float32)
        return scale, offset, tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), highest)
    return scale, offset, step_of_width(tl.maximum(width, 1))


@triton.jit
def _levels_of(rows, start, begin, width, place, inside):
    """int32 levels at ``place`` of the segments that begin ``begin`` bytes behind the words at ``start``; and which lie
    in the data."""
    bit = begin * 8 + place * width
    word = start + (bit >> 5)
    found = inside & (word + 1 < rows.word_count)
    low = tl.load(rows.words_ptr + word, found, 0).to(tl.uint32, bitcast=True)
    high = tl.load(rows.words_ptr + word + 1, found, 0).to(tl.uint32, bitcast=True)
    shift = (bit & 31).to(tl.uint32)
    level = (low >> shift) | ((high << 1) << (31 - shift))
    return (level & ((1 << width) - 1).to(tl.uint32)).to(tl.int32), found


@triton.jit
def _tile_of(rows, row, first, carry, CONFIG: tl.constexpr):
    """The tile of segments from ``first`` on, which begins ``carry`` bytes behind the rows' starts; and where the next
    one begins, ``[rows, 1, 1]``."""
    segment = (first + tl.arange(0, CONFIG.segments))[None, :]
    inside = (row[:, None] >= 0) & (segment < CONFIG.row_segments)
    width = _widths_of(rows, row[:, None], segment, inside, CONFIG)
    size = (CONFIG.segment * width + 7) // 8
    begin = carry + (tl.cumsum(size, 1) - size)[:, :, None]
    scale, offset, step = _scale_and_step(rows, row[:, None], segment, width, inside, CONFIG)
    of_each = scale[:, :, None], offset[:, :, None], step[:, :, None]
    tile = Tile(begin, width[:, :, None], of_each[0], of_each[1], of_each[2], inside[:, :, None])
    return tile, carry + tl.sum(size, 1)[:, None, None]


@triton.jit
def _weights_of(rows, start, place, tile, CONFIG: tl.constexpr):
    """float32 weights at ``place`` of a tile's segments, NaN where they lie outside of the data, 0 where none are."""
    inside = tile.inside & (place < CONFIG.segment)
    level, found = _levels_of(rows, start, tile.begin, tile.width, place, inside)
    if CONFIG.centred:
        weight = (level - ((1 << tile.width) >> 1)).to(tl.float32) * tile.scale
    else:
        weight = (level.to(tl.float32) * tile.step) * tile.scale + tile.offset
    return tl.where(found, weight, tl.where(inside, float("nan"), 0.0))


@triton.jit
def _row_and_start(rows, row):
    """int64 row, the nearest one that exists, and the word of the data at which it begins."""
    row = tl.minimum(tl.maximum(row, 0), rows.count - 1)
    return row, tl.load(rows.starts_ptr + row).to(tl.uint32, bitcast=True).to(tl.int64)[:, None, None]


@triton.jit
def unpack_rows_kernel(indices_ptr, rows, result_ptr, CONFIG: tl.constexpr):
    """The weights of some rows, as the oracle has them bit for bit; NaN for a row that does not exist.

    ``indices_ptr`` [programs] int64, read
    ``rows`` :class:`Rows`, read
    ``result_ptr`` [programs, columns] float32, written

    One program unpacks one row.
    """
    wanted = tl.load(indices_ptr + tl.program_id(0) + tl.arange(0, 1))
    exists = (wanted >= 0) & (wanted < rows.count)
    row, start = _row_and_start(rows, wanted)
    columns: tl.constexpr = CONFIG.row_segments * CONFIG.segment
    carry = tl.full((1, 1, 1), 0, tl.int32)
    for first in range(0, CONFIG.row_segments, CONFIG.segments):
        tile, carry = _tile_of(rows, row, first, carry, CONFIG)
        column = (first + tl.arange(0, CONFIG.segments))[None, :, None].to(tl.int64) * CONFIG.segment
        for part in range(0, CONFIG.segment, CONFIG.span):
            place = (part + tl.arange(0, CONFIG.span))[None, None, :]
            weight = _weights_of(rows, start, place, tile, CONFIG)
            weight = tl.where(exists[:, None, None], weight, float("nan"))
            target = result_ptr + tl.program_id(0).to(tl.int64) * columns + column + place
            tl.store(target, weight, tile.inside & (place < CONFIG.segment))


@triton.jit
def multiply_rows_kernel(vectors_ptr, number, rows, result_ptr, CONFIG: tl.constexpr):
    """Products of vectors with rows; sums in float32, of each element of a tile first.

    ``vectors_ptr`` [number, columns] float32, read
    ``rows`` :class:`Rows`, read
    ``result_ptr`` [number, count] float32, written

    One program multiplies ``vectors`` vectors with one row, or one vector with ``rows`` rows.
    """
    of_program = tl.program_id(0).to(tl.int64) * CONFIG.rows + tl.arange(0, CONFIG.rows)
    row, start = _row_and_start(rows, of_program)
    vector = tl.arange(0, CONFIG.vectors)
    columns: tl.constexpr = CONFIG.row_segments * CONFIG.segment
    lines: tl.constexpr = CONFIG.rows * CONFIG.vectors
    sums = tl.full((lines, CONFIG.segments, CONFIG.span), 0.0, tl.float32)
    carry = tl.full((CONFIG.rows, 1, 1), 0, tl.int32)
    for first in range(0, CONFIG.row_segments, CONFIG.segments):
        tile, carry = _tile_of(rows, row, first, carry, CONFIG)
        segment = (first + tl.arange(0, CONFIG.segments))[None, :, None]
        for part in range(0, CONFIG.segment, CONFIG.span):
            place = (part + tl.arange(0, CONFIG.span))[None, None, :]
            weight = _weights_of(rows, start, place, tile, CONFIG)
            given = vectors_ptr + vector[:, None, None] * columns + segment.to(tl.int64) * CONFIG.segment + place
            known = (segment < CONFIG.row_segments) & (place < CONFIG.segment) & (vector < number)[:, None, None]
            sums += weight * tl.load(given, known, 0.0)
    line = tl.arange(0, lines)
    made = tl.sum(tl.sum(sums, 2), 1)
    if CONFIG.vectors == 1:
        of_line = tl.program_id(0).to(tl.int64) * CONFIG.rows + line
        tl.store(result_ptr + of_line, made, of_line < rows.count)
    else:
        tl.store(result_ptr + line.to(tl.int64) * rows.count + tl.program_id(0), made, line < number)
