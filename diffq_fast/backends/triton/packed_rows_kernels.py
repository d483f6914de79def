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
    """``count`` packed rows: data as int32 ``[words]``, where rows begin in it, their widths, scales and offsets of
    ``group_segments`` segments each."""

    data_ptr: Any
    starts_ptr: Any
    widths_ptr: Any
    scales_ptr: Any
    offsets_ptr: Any
    words: Any
    count: Any
    group_segments: Any


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
    found = inside & (word + 1 < rows.words)
    low = tl.load(rows.data_ptr + word, found, 0).to(tl.uint32, bitcast=True)
    high = tl.load(rows.data_ptr + word + 1, found, 0).to(tl.uint32, bitcast=True)
    shift = (bit & 31).to(tl.uint32)
    level = (low >> shift) | ((high << 1) << (31 - shift))
    return (level & ((1 << width) - 1).to(tl.uint32)).to(tl.int32), found


@triton.jit
def _tile_of(rows, row, exists, first, carry, CONFIG: tl.constexpr):
    """What a tile of segments from ``first`` on shares, each ``[rows, segments, 1]``: where they begin, in bytes, their
    widths, scales, offsets, steps, and which exist; and where the next tile begins, ``[rows, 1, 1]``."""
    segment = (first + tl.arange(0, CONFIG.segments))[None, :]
    inside = exists[:, None] & (segment < CONFIG.row_segments)
    width = _widths_of(rows, row[:, None], segment, inside, CONFIG)
    size = (CONFIG.segment * width + 7) // 8
    behind = tl.cumsum(size, 1)
    scale, offset, step = _scale_and_step(rows, row[:, None], segment, width, inside, CONFIG)
    begin = carry + (behind - size)[:, :, None]
    total = carry + tl.sum(size, 1)[:, None, None]
    return begin, width[:, :, None], scale[:, :, None], offset[:, :, None], step[:, :, None], inside[:, :, None], total


@triton.jit
def _weights_of(rows, start, place, begin, width, scale, offset, step, inside, CONFIG: tl.constexpr):
    """float32 weights at ``place`` of a tile's segments, NaN where they lie outside of the data, 0 where none are."""
    inside = inside & (place < CONFIG.segment)
    level, found = _levels_of(rows, start, begin, width, place, inside)
    if CONFIG.centred:
        weight = (level - ((1 << width) >> 1)).to(tl.float32) * scale
    else:
        weight = (level.to(tl.float32) * step) * scale + offset
    return tl.where(found, weight, tl.where(inside, float("nan"), 0.0))


@triton.jit
def _row_and_start(rows, row):
    """int64 row, the nearest one that exists, and the word of the data at which it begins."""
    row = tl.minimum(tl.maximum(row, 0), rows.count - 1)
    return row, tl.load(rows.starts_ptr + row).to(tl.uint32, bitcast=True).to(tl.int64)[:, None, None]


@triton.jit
def unpack_rows_kernel(
    indices_ptr,
    data_ptr,
    starts_ptr,
    widths_ptr,
    scales_ptr,
    offsets_ptr,
    result_ptr,
    words,
    count,
    group_segments,
    CONFIG: tl.constexpr,
):
    """The weights of some rows, as the oracle has them bit for bit; NaN for a row that does not exist.

    ``indices_ptr`` [programs] int64, read
    ``data_ptr`` [words] int32, ``starts_ptr`` [count + 1] int32, ``widths_ptr`` [count, bytes] uint8,
    ``scales_ptr``, ``offsets_ptr`` [groups] float32, read; offsets unless ``centred``
    ``result_ptr`` [programs, columns] float32, written

    One program unpacks one row.
    """
    rows = Rows(data_ptr, starts_ptr, widths_ptr, scales_ptr, offsets_ptr, words, count, group_segments)
    wanted = tl.load(indices_ptr + tl.program_id(0) + tl.arange(0, 1))
    exists = (wanted >= 0) & (wanted < count)
    row, start = _row_and_start(rows, wanted)
    columns: tl.constexpr = CONFIG.row_segments * CONFIG.segment
    carry = tl.full((1, 1, 1), 0, tl.int32)
    for first in range(0, CONFIG.row_segments, CONFIG.segments):
        begin, width, scale, offset, step, inside, carry = _tile_of(rows, row, row >= 0, first, carry, CONFIG)
        column = (first + tl.arange(0, CONFIG.segments))[None, :, None].to(tl.int64) * CONFIG.segment
        for part in range(0, CONFIG.segment, CONFIG.span):
            place = (part + tl.arange(0, CONFIG.span))[None, None, :]
            weight = _weights_of(rows, start, place, begin, width, scale, offset, step, inside, CONFIG)
            weight = tl.where(exists[:, None, None], weight, float("nan"))
            target = result_ptr + tl.program_id(0).to(tl.int64) * columns + column + place
            tl.store(target, weight, inside & (place < CONFIG.segment))


@triton.jit
def multiply_rows_kernel(
    vectors_ptr,
    data_ptr,
    starts_ptr,
    widths_ptr,
    scales_ptr,
    offsets_ptr,
    result_ptr,
    number,
    words,
    count,
    group_segments,
    CONFIG: tl.constexpr,
):
    """Products of vectors with rows; sums in float32, of each element of a tile first.

    ``vectors_ptr`` [number, columns] float32, read
    ``result_ptr`` [number, count] float32, written; the others as :func:`unpack_rows_kernel` has them

    One program multiplies ``vectors`` vectors with one row, or one vector with ``rows`` rows.
    """
    rows = Rows(data_ptr, starts_ptr, widths_ptr, scales_ptr, offsets_ptr, words, count, group_segments)
    of_program = tl.program_id(0).to(tl.int64) * CONFIG.rows + tl.arange(0, CONFIG.rows)
    row, start = _row_and_start(rows, of_program)
    vector = tl.arange(0, CONFIG.vectors)
    columns: tl.constexpr = CONFIG.row_segments * CONFIG.segment
    lines: tl.constexpr = CONFIG.rows * CONFIG.vectors
    sums = tl.full((lines, CONFIG.segments, CONFIG.span), 0.0, tl.float32)
    carry = tl.full((CONFIG.rows, 1, 1), 0, tl.int32)
    for first in range(0, CONFIG.row_segments, CONFIG.segments):
        begin, width, scale, offset, step, inside, carry = _tile_of(rows, row, row >= 0, first, carry, CONFIG)
        segment = (first + tl.arange(0, CONFIG.segments))[None, :, None]
        for part in range(0, CONFIG.segment, CONFIG.span):
            place = (part + tl.arange(0, CONFIG.span))[None, None, :]
            weight = _weights_of(rows, start, place, begin, width, scale, offset, step, inside, CONFIG)
            given = vectors_ptr + vector[:, None, None] * columns + segment.to(tl.int64) * CONFIG.segment + place
            known = (segment < CONFIG.row_segments) & (place < CONFIG.segment) & (vector < number)[:, None, None]
            sums += weight * tl.load(given, known, 0.0)
    line = tl.arange(0, lines)
    made = tl.sum(tl.sum(sums, 2), 1)
    if CONFIG.vectors == 1:
        of_line = tl.program_id(0).to(tl.int64) * CONFIG.rows + line
        tl.store(result_ptr + of_line, made, of_line < count)
    else:
        tl.store(result_ptr + line.to(tl.int64) * count + tl.program_id(0), made, line < number)
