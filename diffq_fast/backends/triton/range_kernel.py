"""Smallest and largest element of each weight of a bucket, where they first stand and how many share them."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import greatest, least
from .tiles import is_whole, load_tile, tile_of

BIG = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _places_in(values, element, lo, hi):
    """First places of lo and hi among ``values``, and how many values equal each."""
    first_lo = tl.min(tl.where(values == lo, element, BIG), 0)
    first_hi = tl.min(tl.where(values == hi, element, BIG), 0)
    return first_lo, first_hi, tl.sum((values == lo).to(tl.int32), 0), tl.sum((values == hi).to(tl.int32), 0)


@triton.jit
def _whole_tile(address, first, count, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """lo, hi, their first places in the tile and their numbers, from one read."""
    values = load_tile(address, first, count, 0.0, DTYPE, TILE, True)
    lo = least(values, 0)
    hi = greatest(values, 0)
    first_lo, first_hi, ties_lo, ties_hi = _places_in(values, tl.arange(0, TILE), lo, hi)
    return lo, hi, first_lo, first_hi, ties_lo, ties_hi


@triton.jit
def _part_tile(address, first, count, DTYPE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr):
    """As :func:`_whole_tile` for a tile that must be masked: in steps, which need few registers, and two
    reads."""
    lows = tl.full((STEP,), float("inf"), tl.float32)
    highs = tl.full((STEP,), float("-inf"), tl.float32)
    element = tl.arange(0, STEP)
    size = tl.minimum(count - first, TILE).to(tl.int32)
    start = 0
    while start < size:
        values = load_tile(address, first + start, count, 0.0, DTYPE, STEP, False)
        inside = start + element < size
        lows = tl.minimum(lows, tl.where(inside, values, float("inf")), tl.PropagateNan.ALL)
        highs = tl.maximum(highs, tl.where(inside, values, float("-inf")), tl.PropagateNan.ALL)
        start += STEP
    lo = least(lows, 0)
    hi = greatest(highs, 0)
    first_lo = tl.full((), 0x7FFFFFFF, tl.int32)
    first_hi = first_lo
    ties_lo = tl.full((), 0, tl.int32)
    ties_hi = ties_lo
    start = 0
    while start < size:
        values = load_tile(address, first + start, count, float("nan"), DTYPE, STEP, False)
        place_lo, place_hi, equal_lo, equal_hi = _places_in(values, start + element, lo, hi)
        first_lo = tl.minimum(first_lo, place_lo)
        first_hi = tl.minimum(first_hi, place_hi)
        ties_lo += equal_lo
        ties_hi += equal_hi
        start += STEP
    return lo, hi, first_lo, first_hi, ties_lo, ties_hi


@triton.jit
def _bounds(partial, programs, first, number, CHUNK: tl.constexpr):
    """Least lo and greatest hi of the partials ``first ... first + number - 1``."""
    lows = tl.full((CHUNK,), float("inf"), tl.float32)
    highs = tl.full((CHUNK,), float("-inf"), tl.float32)
    start = 0
    while start < number:
        at = start + tl.arange(0, CHUNK)
        known = at < number
        lo = tl.load(partial + first + at, known, 0, cache_modifier=".cg").to(tl.float32, bitcast=True)
        hi = tl.load(partial + programs + first + at, known, 0, cache_modifier=".cg").to(tl.float32, bitcast=True)
        lows = tl.minimum(lows, tl.where(known, lo, float("inf")), tl.PropagateNan.ALL)
        highs = tl.maximum(highs, tl.where(known, hi, float("-inf")), tl.PropagateNan.ALL)
        start += CHUNK
    return least(lows, 0), greatest(highs, 0)


@triton.jit
def _places(partial, programs, first, number, bound, WHICH: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr):
    """First index of ``bound`` (0: lo, 1: hi) in the weight, and how many elements equal it."""
    index = tl.full((CHUNK,), 0x7FFFFFFFFFFFFFFF, tl.int64)
    ties = tl.zeros((CHUNK,), tl.int64)
    start = 0
    while start < number:
        at = start + tl.arange(0, CHUNK)
        known = at < number
        here = partial + first + at
        bits = tl.load(here + programs * WHICH, known, 0, cache_modifier=".cg")
        equal = known & (bits.to(tl.float32, bitcast=True) == bound)
        place = tl.load(here + programs * (2 + WHICH), equal, 0, cache_modifier=".cg") + at.to(tl.int64) * TILE
        index = tl.where(equal, tl.minimum(index, place), index)
        ties += tl.load(here + programs * (4 + WHICH), equal, 0, cache_modifier=".cg")
        start += CHUNK
    return tl.min(index, 0), tl.sum(ties, 0)


@triton.jit
def _write_range(partial, programs, plan, number, found, extremes, TILE: tl.constexpr, CHUNK: tl.constexpr):
    """From all of a weight's partials to its rows of ``found`` and ``extremes``."""
    start = tl.load(plan + 1)
    lo, hi = _bounds(partial, programs, start, number, CHUNK)
    first_lo, ties_lo = _places(partial, programs, start, number, lo, 0, TILE, CHUNK)
    first_hi, ties_hi = _places(partial, programs, start, number, hi, 1, TILE, CHUNK)
    known = (lo == lo) & (hi == hi)
    found += tl.load(plan + 5) * 2
    extremes += tl.load(plan + 5) * 4
    tl.store(found, lo)
    tl.store(found + 1, hi)
    tl.store(extremes, tl.where(known, first_lo, 0))
    tl.store(extremes + 1, tl.where(known, first_hi, 0))
    tl.store(extremes + 2, tl.where(known, ties_lo, 0))
    tl.store(extremes + 3, tl.where(known, ties_hi, 0))


@triton.jit(do_not_specialize=["programs"])
def weight_range_kernel(
    addresses,
    plan,
    owners,
    programs,
    partial,
    finished,
    found,
    extremes,
    FIELDS: tl.constexpr,
    DTYPE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """``(lo, hi)``, first indices and numbers of ties. One program handles one tile; a weight's last one sums
    up.

    ``partial`` int32 [6, programs], scratch: bits of lo and hi, first places in the tile, numbers of ties;
    ``finished`` int32 [weights], 0 before and after; ``found`` float32 [weights, 2], written; ``extremes``
    int64 [weights, 4], written.
    """
    tile, row, count, first = tile_of(plan, owners, TILE)
    address = tl.load(addresses + row * FIELDS)
    if is_whole(address, first, count, TILE):
        lo, hi, first_lo, first_hi, ties_lo, ties_hi = _whole_tile(address, first, count, DTYPE, TILE)
    else:
        lo, hi, first_lo, first_hi, ties_lo, ties_hi = _part_tile(address, first, count, DTYPE, TILE, CHUNK)
    tl.store(partial + tile, lo.to(tl.int32, bitcast=True))
    tl.store(partial + programs + tile, hi.to(tl.int32, bitcast=True))
    tl.store(partial + programs * 2 + tile, first_lo)
    tl.store(partial + programs * 3 + tile, first_hi)
    tl.store(partial + programs * 4 + tile, ties_lo)
    tl.store(partial + programs * 5 + tile, ties_hi)
    tl.debug_barrier()
    number = tl.load(plan + row * 8 + 6).to(tl.int32)
    if tl.atomic_add(finished + row, 1, sem="acq_rel", scope="gpu") == number - 1:
        _write_range(partial, programs, plan + row * 8, number, found, extremes, TILE, CHUNK)
        tl.store(finished + row, 0)
