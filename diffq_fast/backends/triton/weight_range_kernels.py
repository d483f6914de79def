"""Smallest and largest element of each weight of a bucket, where they first stand and how many share them; and the
ranges of groups of any size."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arguments import (
    EXTREMES_COLUMNS,
    GROUP_BEGIN,
    PLACE,
    PLACE_HI,
    PLACE_LO,
    PLAN_COLUMNS,
    PROGRAM_BEGIN,
    PROGRAMS,
    TIES_HI,
    TIES_LO,
    WEIGHT,
    Range,
)
from .arithmetic import greatest, least
from .ragged_groups import groups_of_program, ranges_of_groups
from .tiles import is_whole, load_tile, store_ranges, tile_of

BIG = tl.constexpr(0x7FFFFFFF)

# Partial results, int32 [PARTIALS, tiles]: bits of lo and hi, their first places in the tile, how many share them.
TILE_LO, TILE_HI, TILE_PLACE_LO, TILE_PLACE_HI, TILE_TIES_LO, TILE_TIES_HI, PARTIALS = map(tl.constexpr, range(7))


class TileRange(NamedTuple):
    """A tile's range, where its two ends first stand in it, and how many elements equal each."""

    lo: Any
    hi: Any
    place_lo: Any
    place_hi: Any
    ties_lo: Any
    ties_hi: Any


class Partials(NamedTuple):
    """Partial results of ``number`` tiles from ``begin`` on; columns lie ``stride`` apart."""

    pointer: Any
    stride: Any
    begin: Any
    number: Any


@triton.jit
def _tile_range(values, element, lo, hi):
    """``lo`` and ``hi`` with their first places among ``values``, and how many values equal each."""
    place_lo = tl.min(tl.where(values == lo, element, BIG), 0)
    place_hi = tl.min(tl.where(values == hi, element, BIG), 0)
    ties_lo = tl.sum((values == lo).to(tl.int32), 0)
    return TileRange(lo, hi, place_lo, place_hi, ties_lo, tl.sum((values == hi).to(tl.int32), 0))


@triton.jit
def _whole_tile(address, begin, elements, CONFIG: tl.constexpr):
    """The range of a tile from one read."""
    values = load_tile(address, begin, elements, 0.0, CONFIG.weight, CONFIG.range_step, True)
    return _tile_range(values, tl.arange(0, CONFIG.range_step), least(values, 0), greatest(values, 0))


@triton.jit
def _part_tile(address, begin, elements, CONFIG: tl.constexpr):
    """As :func:`_whole_tile` for a tile that must be masked: in steps, which need few registers, and two
    reads."""
    lo = tl.full((CONFIG.chunk,), float("inf"), tl.float32)
    hi = tl.full((CONFIG.chunk,), float("-inf"), tl.float32)
    element = tl.arange(0, CONFIG.chunk)
    size = tl.minimum(elements - begin, CONFIG.range_step).to(tl.int32)
    start = 0
    while start < size:
        values = load_tile(address, begin + start, elements, 0.0, CONFIG.weight, CONFIG.chunk, False)
        inside = start + element < size
        lo = tl.minimum(lo, tl.where(inside, values, float("inf")), tl.PropagateNan.ALL)
        hi = tl.maximum(hi, tl.where(inside, values, float("-inf")), tl.PropagateNan.ALL)
        start += CONFIG.chunk
    lo = least(lo, 0)
    hi = greatest(hi, 0)
    place_lo = tl.full((), 0x7FFFFFFF, tl.int32)
    place_hi = place_lo
    ties_lo = tl.full((), 0, tl.int32)
    ties_hi = ties_lo
    start = 0
    while start < size:
        values = load_tile(address, begin + start, elements, float("nan"), CONFIG.weight, CONFIG.chunk, False)
        here = _tile_range(values, start + element, lo, hi)
        place_lo = tl.minimum(place_lo, here.place_lo)
        place_hi = tl.minimum(place_hi, here.place_hi)
        ties_lo += here.ties_lo
        ties_hi += here.ties_hi
        start += CONFIG.chunk
    return TileRange(lo, hi, place_lo, place_hi, ties_lo, ties_hi)


@triton.jit
def _ends(partials, CONFIG: tl.constexpr):
    """Least lo and greatest hi of the partials."""
    lo = tl.full((CONFIG.chunk,), float("inf"), tl.float32)
    hi = tl.full((CONFIG.chunk,), float("-inf"), tl.float32)
    start = 0
    while start < partials.number:
        at = start + tl.arange(0, CONFIG.chunk)
        known = at < partials.number
        here = partials.pointer + partials.begin + at
        tile_lo = tl.load(here + partials.stride * TILE_LO, known, 0, cache_modifier=".cg")
        tile_hi = tl.load(here + partials.stride * TILE_HI, known, 0, cache_modifier=".cg")
        tile_lo = tl.where(known, tile_lo.to(tl.float32, bitcast=True), float("inf"))
        tile_hi = tl.where(known, tile_hi.to(tl.float32, bitcast=True), float("-inf"))
        lo = tl.minimum(lo, tile_lo, tl.PropagateNan.ALL)
        hi = tl.maximum(hi, tile_hi, tl.PropagateNan.ALL)
        start += CONFIG.chunk
    return Range(least(lo, 0), greatest(hi, 0))


@triton.jit
def _places(partials, end, VALUE: tl.constexpr, FIRST: tl.constexpr, TIES: tl.constexpr, CONFIG: tl.constexpr):
    """First place of ``end`` (lo or hi, as the three columns say) in the weight, and how many elements equal it."""
    place = tl.full((CONFIG.chunk,), 0x7FFFFFFFFFFFFFFF, tl.int64)
    ties = tl.full((CONFIG.chunk,), 0, tl.int64)
    start = 0
    while start < partials.number:
        at = start + tl.arange(0, CONFIG.chunk)
        known = at < partials.number
        here = partials.pointer + partials.begin + at
        bits = tl.load(here + partials.stride * VALUE, known, 0, cache_modifier=".cg")
        equal = known & (bits.to(tl.float32, bitcast=True) == end)
        in_tile = tl.load(here + partials.stride * FIRST, equal, 0, cache_modifier=".cg")
        place = tl.where(equal, tl.minimum(place, in_tile + at.to(tl.int64) * CONFIG.range_step), place)
        ties += tl.load(here + partials.stride * TIES, equal, 0, cache_modifier=".cg")
        start += CONFIG.chunk
    return tl.min(place, 0), tl.sum(ties, 0)


@triton.jit
def write_range(partials, plan_ptr, ranges_ptr, extremes_ptr, CONFIG: tl.constexpr):
    """From all of a weight's partials to its range and extremes."""
    ends = _ends(partials, CONFIG)
    place_lo, ties_lo = _places(partials, ends.lo, TILE_LO, TILE_PLACE_LO, TILE_TIES_LO, CONFIG)
    place_hi, ties_hi = _places(partials, ends.hi, TILE_HI, TILE_PLACE_HI, TILE_TIES_HI, CONFIG)
    known = (ends.lo == ends.lo) & (ends.hi == ends.hi)
    place = tl.load(plan_ptr + PLACE)
    tl.store(ranges_ptr + place * 2, ends.lo)
    tl.store(ranges_ptr + place * 2 + 1, ends.hi)
    extremes_ptr += place * EXTREMES_COLUMNS
    tl.store(extremes_ptr + PLACE_LO, tl.where(known, place_lo, 0))
    tl.store(extremes_ptr + PLACE_HI, tl.where(known, place_hi, 0))
    tl.store(extremes_ptr + TIES_LO, tl.where(known, ties_lo, 0))
    tl.store(extremes_ptr + TIES_HI, tl.where(known, ties_hi, 0))


@triton.jit
def reduce_tile(address, begin, elements, tile_ptr, stride, CONFIG: tl.constexpr):
    """Writes the partial results of ``range_step`` elements to ``tile_ptr``. After its barrier, whichever thread
    adds to a counter publishes what all of the program's threads have written."""
    if is_whole(address, begin, elements, CONFIG.range_step):
        tile = _whole_tile(address, begin, elements, CONFIG)
    else:
        tile = _part_tile(address, begin, elements, CONFIG)
    tl.store(tile_ptr + stride * TILE_LO, tile.lo.to(tl.int32, bitcast=True))
    tl.store(tile_ptr + stride * TILE_HI, tile.hi.to(tl.int32, bitcast=True))
    tl.store(tile_ptr + stride * TILE_PLACE_LO, tile.place_lo)
    tl.store(tile_ptr + stride * TILE_PLACE_HI, tile.place_hi)
    tl.store(tile_ptr + stride * TILE_TIES_LO, tile.ties_lo)
    tl.store(tile_ptr + stride * TILE_TIES_HI, tile.ties_hi)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["programs"])
def weight_range_kernel(tables, programs, partial_ptr, counters_ptr, ranges_ptr, extremes_ptr, CONFIG: tl.constexpr):
    """``(lo, hi)``, where they first stand and how many elements equal each.

    ``tables``: addresses of weight [elements] of CONFIG.weight, read
    ``partial_ptr`` [6, programs] int32, scratch
    ``counters_ptr`` [weights] int32, 0 before and after
    ``ranges_ptr`` [weights, 2] float32, written
    ``extremes_ptr`` [weights, 4] int64, written

    One program handles one tile; the last one of a weight sums up.
    """
    entry, elements, begin = tile_of(tables, CONFIG.range_step)
    address = tl.load(tables.addresses_ptr + entry + WEIGHT)
    reduce_tile(address, begin, elements, partial_ptr + tl.program_id(0), programs, CONFIG)
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    number = tl.load(plan_ptr + PROGRAMS).to(tl.int32)
    if tl.atomic_add(counters_ptr + entry, 1, sem="acq_rel", scope="gpu") == number - 1:
        partials = Partials(partial_ptr, programs, tl.load(plan_ptr + PROGRAM_BEGIN), number)
        write_range(partials, plan_ptr, ranges_ptr, extremes_ptr, CONFIG)
        tl.store(counters_ptr + entry, 0)


@triton.jit
def group_range_kernel(tables, ranges_ptr, CONFIG: tl.constexpr):
    """``(lo, hi)`` of each group.

    ``tables``: addresses of weight [elements] of CONFIG.weight, read
    ``ranges_ptr`` [groups of all weights, 2] float32, written

    One program handles ``groups`` groups of one weight.
    """
    entry, elements, group, exists = groups_of_program(tables, CONFIG)
    weight_ptr = tl.load(tables.addresses_ptr + entry + WEIGHT).to(tl.pointer_type(CONFIG.weight))
    ranges = ranges_of_groups(weight_ptr, group, elements, CONFIG)
    group_begin = tl.load(tables.plan_ptr + entry * PLAN_COLUMNS + GROUP_BEGIN)
    store_ranges(ranges_ptr, group_begin + group, ranges, exists)
