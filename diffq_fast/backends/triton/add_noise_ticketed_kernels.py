"""Ranges and noise of all weights in one launch: programs draw tickets, in whose order a weight's range comes
before its noise.

A weight's noise waits for its range, which smaller tickets work out. Those are drawn already, by programs that
run: whatever the number of programs, the smallest unfinished ticket waits for nothing, so the launch ends. No
cooperative launch is needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .add_noise_kernels import noise_tile, noisy_weight_of
from .arguments import ELEMENTS, FORWARD_LISTS, PLACE, PLAN_COLUMNS, PROGRAM_BEGIN, PROGRAMS, WEIGHT
from .weight_range_kernels import Partials, reduce_tile, write_range

# The state, int32 [COUNTERS + weights]: the next ticket, how many programs have left, and the weights' counters of
# range tiles, which begin on a cache line of their own.
NEXT_TICKET, LEFT = map(tl.constexpr, range(2))
COUNTERS = tl.constexpr(32)


class Scratch(NamedTuple):
    """What the programs of a launch tell each other by."""

    state_ptr: Any
    partial_ptr: Any


class Results(NamedTuple):
    ranges_ptr: Any
    extremes_ptr: Any
    noisy_ptr: Any


@triton.jit
def _range_ticket(tables, entry, tile, scratch, stride, results, CONFIG: tl.constexpr):
    """Reduces one tile, in steps that need no more registers than the noise. The weight's last one sums up, and
    then says so: its counter becomes tiles + 1."""
    counter_ptr = scratch.state_ptr + COUNTERS + entry
    steps: tl.constexpr = CONFIG.tile // CONFIG.range_step
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    address = tl.load(tables.addresses_ptr + entry * FORWARD_LISTS + WEIGHT)
    elements = tl.load(plan_ptr + ELEMENTS)
    number = tl.load(plan_ptr + PROGRAMS).to(tl.int32)
    begin = tl.load(plan_ptr + PROGRAM_BEGIN) * steps
    for step in range(steps):
        place = tile * steps + step
        tile_ptr = scratch.partial_ptr + begin + place
        reduce_tile(address, place * CONFIG.range_step, elements, tile_ptr, stride, CONFIG)
    if tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == number - 1:
        partials = Partials(scratch.partial_ptr, stride, begin, number * steps)
        write_range(partials, plan_ptr, results.ranges_ptr, results.extremes_ptr, CONFIG)
        tl.debug_barrier()
        tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")


@triton.jit
def _wait_for_range(tables, entry, scratch):
    number = tl.load(tables.plan_ptr + entry * PLAN_COLUMNS + PROGRAMS).to(tl.int32)
    counter_ptr = scratch.state_ptr + COUNTERS + entry
    while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") <= number:
        pass


@triton.jit
def _noise_ticket(tables, entry, job, tile, CONFIG: tl.constexpr):
    """Adds noise to one tile."""
    range_ptr = job.ranges_ptr + tl.load(tables.plan_ptr + entry * PLAN_COLUMNS + PLACE) * 2
    # From L2: this multiprocessor's own cache may hold what stood there before.
    length = tl.load(range_ptr + 1, cache_modifier=".cg") - tl.load(range_ptr, cache_modifier=".cg")
    noise_tile(job, length, tile * CONFIG.tile, CONFIG)


@triton.jit
def _leave(state_ptr, weights, CHUNK: tl.constexpr):
    """The last program to leave puts the whole state back to zero for the next launch."""
    tl.debug_barrier()
    if tl.atomic_add(state_ptr + LEFT, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
        start = 0
        while start < weights:
            entry = start + tl.arange(0, CHUNK)
            tl.store(state_ptr + COUNTERS + entry, tl.zeros((CHUNK,), tl.int32), entry < weights)
            start += CHUNK
        tl.store(state_ptr + NEXT_TICKET, 0)
        tl.store(state_ptr + LEFT, 0)


@triton.jit(do_not_specialize=["tiles"])
def ticketed_noise_kernel(tables, tiles, scratch, key_ptr, results, rule, CONFIG: tl.constexpr):
    """What ``weight_range_kernel`` and then ``add_noise_kernel`` write, by any number of programs.

    ``tables``: as in ``add_noise_kernel``; owners [2 * tiles + 1] int64, read: the tickets, tile * 2**32 + entry * 2 +
    (0: range, 1: noise), and then the number of weights
    ``scratch``: state [COUNTERS + weights] int32, 0 before and after; partial results [6, tiles of range_step] int32
    ``key_ptr`` [] int64, read
    ``results``: ranges, extremes and noisy weights, written

    One program handles a ticket after another.
    """
    stride = tiles * (CONFIG.tile // CONFIG.range_step)
    ticket = tl.atomic_add(scratch.state_ptr + NEXT_TICKET, 1, sem="relaxed", scope="gpu")
    while ticket < tiles * 2:
        work = tl.load(tables.owners_ptr + ticket)
        tile = work >> 32
        entry = (work & 0xFFFFFFFF) >> 1
        if work & 1 == 0:
            _range_ticket(tables, entry, tile, scratch, stride, results, CONFIG)
        else:
            job = noisy_weight_of(tables, entry, key_ptr, results.ranges_ptr, results.noisy_ptr, rule)
            _wait_for_range(tables, entry, scratch)
            _noise_ticket(tables, entry, job, tile, CONFIG)
        ticket = tl.atomic_add(scratch.state_ptr + NEXT_TICKET, 1, sem="relaxed", scope="gpu")
    _leave(scratch.state_ptr, tl.load(tables.owners_ptr + tiles * 2), CONFIG.chunk)
