"""The native layout of packed levels (docs/packed_format.md): words of 32 lanes."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .levels import (
    element_and_group,
    integer,
    lo_and_length,
    load_inside,
    may_fuse,
    number_of,
    rounded_level,
    weight_of,
)


class WordsConfig(NamedTuple):
    """What the kernels are compiled for: levels of ``width`` bits, in groups of ``group_size``; ``ordered``: the weight
    has one width only. ``float_weight``: they quantise on the way in, or dequantise on the way out. ``fused``: as in
    :func:`rounded_level`, where the range allows. A program handles ``lanes`` lanes."""

    width: int
    group_size: int
    per_group: bool
    ordered: bool
    float_weight: bool
    fused: bool
    lanes: int


class Levels(NamedTuple):
    """The levels of one width: of which weight (or its levels), with which ranges and order of groups, how many."""

    weight_ptr: Any
    ranges_ptr: Any
    order_ptr: Any
    number: Any


@triton.jit
def _is_whole(number, CONFIG: tl.constexpr):
    """Whether all blocks of this program are full: 32 lanes of 32 levels."""
    return (tl.program_id(0).to(tl.int64) + 1) * (CONFIG.lanes * 32) <= number


@triton.jit
def _lanes_of(number, CONFIG: tl.constexpr):
    """This program's lanes: level of row 0, distance to the next row's, place of word 0, which lanes
    exist. A full block has 32 lanes, the last one as few as hold its levels in 32 rows."""
    lane = tl.program_id(0).to(tl.int64) * CONFIG.lanes + tl.arange(0, CONFIG.lanes)
    block = lane // 32
    lanes = tl.minimum((number - block * 1024 + 31) // 32, 32)
    exists = lane % 32 < lanes
    return block * 1024 + lane % 32, lanes, block * 32 * CONFIG.width + lane % 32, exists


@triton.jit
def _store(pointer, values, inside):
    """Where ``inside`` holds; None: everywhere."""
    if inside is None:
        tl.store(pointer, values)
    else:
        tl.store(pointer, values, inside)


@triton.jit
def _level_at(levels, position, inside, lo, length, CONFIG: tl.constexpr, FUSED: tl.constexpr):
    """uint32 levels at ``position`` among those of the width; 0 where none are ``inside`` (None: all are)."""
    element, group = element_and_group(position, inside, levels.order_ptr, CONFIG.group_size, CONFIG.ordered)
    level = load_inside(levels.weight_ptr + element, inside)
    if CONFIG.float_weight:
        if CONFIG.per_group:
            lo, length = lo_and_length(levels.ranges_ptr, group, inside, True)
        width = tl.full((CONFIG.lanes,), CONFIG.width, tl.int32)
        level = integer(rounded_level(level.to(tl.float32), lo, length, width, FUSED))
        if inside is not None:
            level = tl.where(inside, level, 0)
        return level.to(tl.uint32, bitcast=True)
    return level.to(tl.uint32) & ((1 << CONFIG.width) - 1)


@triton.jit
def _pack_lanes(levels, words_ptr, lo, length, CONFIG: tl.constexpr, FUSED: tl.constexpr, WHOLE: tl.constexpr):
    """The words of this program's lanes; ``lo`` and ``length`` [lanes] of the weight unless ``per_group``. WHOLE: all
    32 levels of all lanes exist."""
    start, stride, place, exists = _lanes_of(levels.number, CONFIG)
    if WHOLE:
        stride, exists = 32, None
    bits: tl.constexpr = CONFIG.width
    word = tl.full((CONFIG.lanes,), 0, tl.uint32)
    for row in tl.static_range(32):
        position = start + row * stride
        inside = None if WHOLE else exists & (position < levels.number)
        level = _level_at(levels, position, inside, lo, length, CONFIG, FUSED)
        word += level << (row * bits % 32)  # no carries: these bits are 0 as yet
        if row * bits % 32 + bits >= 32:
            _store(words_ptr + place + (row * bits // 32) * stride, word.to(tl.int32, bitcast=True), exists)
            word = level >> (32 - row * bits % 32) if row * bits % 32 + bits > 32 else level * 0


@triton.jit(do_not_specialize=["number"])
def pack_kernel(source_ptr, ranges_ptr, order_ptr, words_ptr, number, CONFIG: tl.constexpr):
    """Words of ``number`` levels of one width: row r of a lane takes bits [r * width, (r + 1) * width) of its words.

    ``source_ptr`` [elements] int32 levels, or (``float_weight``) float32|bf16|f16, read
    ``ranges_ptr`` [1 or groups, 2] float32, read if ``float_weight``
    ``order_ptr`` [groups of this width] int64, read unless ``ordered``
    ``words_ptr`` [words of this width] int32, written

    One program handles ``lanes`` lanes, each with up to 32 levels.
    """
    levels = Levels(source_ptr, ranges_ptr, order_ptr, number)
    lo = tl.full((CONFIG.lanes,), 0.0, tl.float32)
    length = lo
    if CONFIG.per_group:  # one form: two would take twice as long to compile
        _pack_lanes(levels, words_ptr, lo, length, CONFIG, False, False)
    else:
        usual = _is_whole(number, CONFIG)
        fused: tl.constexpr = CONFIG.fused and CONFIG.float_weight
        if CONFIG.float_weight:
            lo, length = lo_and_length(ranges_ptr, tl.full((CONFIG.lanes,), 0, tl.int32), lo == lo, False)
        if fused:
            usual = usual & may_fuse(ranges_ptr)
        if usual:
            _pack_lanes(levels, words_ptr, lo, length, CONFIG, fused, True)
        else:
            _pack_lanes(levels, words_ptr, lo, length, CONFIG, False, False)


@triton.jit
def _unpack_lanes(words_ptr, levels, result_ptr, lo, length, CONFIG: tl.constexpr, WHOLE: tl.constexpr):
    """What this program's lanes hold; arguments as in :func:`_pack_lanes`."""
    start, stride, place, exists = _lanes_of(levels.number, CONFIG)
    if WHOLE:
        stride, exists = 32, None
    bits: tl.constexpr = CONFIG.width
    width = tl.full((CONFIG.lanes,), bits, tl.int32)
    word = load_inside(words_ptr + place, exists).to(tl.uint32, bitcast=True)
    for row in tl.static_range(32):
        position = start + row * stride
        inside = None if WHOLE else exists & (position < levels.number)
        level = word >> (row * bits % 32)
        if row * bits % 32 + bits >= 32 and row < 31:
            word = load_inside(words_ptr + place + (row * bits // 32 + 1) * stride, exists)
            word = word.to(tl.uint32, bitcast=True)
            if row * bits % 32 + bits > 32:
                level |= word << (32 - row * bits % 32)
        level = (level & ((1 << bits) - 1)).to(tl.int32)
        element, group = element_and_group(position, inside, levels.order_ptr, CONFIG.group_size, CONFIG.ordered)
        if CONFIG.float_weight:
            if CONFIG.per_group:
                lo, length = lo_and_length(levels.ranges_ptr, group, inside, True)
            made = weight_of(number_of(level), lo, length, width)
            _store(result_ptr + element, made.to(result_ptr.dtype.element_ty), inside)
        else:
            _store(result_ptr + element, level, inside)


@triton.jit(do_not_specialize=["number"])
def unpack_kernel(words_ptr, ranges_ptr, order_ptr, result_ptr, number, CONFIG: tl.constexpr):
    """The inverse of :func:`pack_kernel`.

    ``words_ptr`` [words of this width] int32, read
    ``ranges_ptr``, ``order_ptr`` as there, read
    ``result_ptr`` [elements] int32 levels, or (``float_weight``) float32|bf16|f16, written

    One program handles ``lanes`` lanes.
    """
    levels = Levels(result_ptr, ranges_ptr, order_ptr, number)
    lo = tl.full((CONFIG.lanes,), 0.0, tl.float32)
    length = lo
    if CONFIG.per_group:
        _unpack_lanes(words_ptr, levels, result_ptr, lo, length, CONFIG, False)
    else:
        if CONFIG.float_weight:
            lo, length = lo_and_length(ranges_ptr, tl.full((CONFIG.lanes,), 0, tl.int32), lo == lo, False)
        if _is_whole(number, CONFIG):
            _unpack_lanes(words_ptr, levels, result_ptr, lo, length, CONFIG, True)
        else:
            _unpack_lanes(words_ptr, levels, result_ptr, lo, length, CONFIG, False)
