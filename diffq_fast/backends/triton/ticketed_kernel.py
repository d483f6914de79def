"""Range and noise of all weights in one launch: programs draw tickets, in whose order a weight's range comes
before its noise.

A weight's noise waits for its range, which smaller tickets work out. Those are drawn already, by programs that
run: whatever the number of programs, the smallest unfinished ticket waits for nothing, so the launch ends. No
cooperative launch is needed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .noise_kernels import noise_tile
from .range_kernel import reduce_tile, write_range


@triton.jit
def _range_ticket(
    addresses, plan, row, tile, partials, partial, counter, found, extremes, DTYPE: tl.constexpr, TILE: tl.constexpr,
    RANGE_STEP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Reduces one tile, in steps that need no more registers than the noise. The weight's last one sums up, and
    then says so: its counter becomes tiles + 1."""
    steps: tl.constexpr = TILE // RANGE_STEP
    plan += row * 8
    address = tl.load(addresses + row * 2)
    count = tl.load(plan)
    number = tl.load(plan + 6).to(tl.int32)
    start = tl.load(plan + 1) * steps
    for step in range(steps):
        place = tile * steps + step
        reduce_tile(address, start + place, place * RANGE_STEP, count, partials, partial, DTYPE, RANGE_STEP, CHUNK)
    if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == number - 1:
        write_range(partial, partials, start, number * steps, plan, found, extremes, RANGE_STEP, CHUNK)
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def _noise_ticket(
    addresses, plan, row, tile, key, counter, found, noisy, low, high, GROUP: tl.constexpr, PARAM: tl.constexpr,
    KIND: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr, WHOLE_STEP: tl.constexpr, PART_STEP: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Waits for the weight's range, then adds noise to one tile."""
    plan += row * 8
    weight = tl.load(addresses + row * 2)
    logits = tl.load(addresses + row * 2 + 1)
    noisy += tl.multiple_of(tl.load(plan + 2), 16)
    stream = tl.load(plan + 4).to(tl.uint32)
    bounds = found + tl.load(plan + 5) * 2
    number = tl.load(plan + 6).to(tl.int32)
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") <= number:
        pass
    # From L2: this multiprocessor's own cache may hold what stood there before.
    length = tl.load(bounds + 1, cache_modifier=".cg") - tl.load(bounds, cache_modifier=".cg")
    noise_tile(
        weight, logits, tile * TILE, tl.load(plan), stream, tl.load(key), length, found, 0, noisy, low, high, GROUP,
        False, PARAM, KIND, DTYPE, TILE, WHOLE_STEP, PART_STEP, PTX,
    )  # fmt: skip


@triton.jit
def _leave(state, weights, COUNTERS: tl.constexpr, CHUNK: tl.constexpr):
    """The last program to leave puts all counters back to zero for the next launch."""
    tl.debug_barrier()
    if tl.atomic_add(state + 1, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
        start = 0
        while start < weights:
            row = start + tl.arange(0, CHUNK)
            tl.store(state + COUNTERS + row, tl.zeros((CHUNK,), tl.int32), row < weights)
            start += CHUNK
        tl.store(state, 0)
        tl.store(state + 1, 0)


@triton.jit(do_not_specialize=["tiles", "weights"])
def ticketed_noise_kernel(
    addresses, plan, tickets, tiles, weights, state, key, partial, found, extremes, noisy, low, high, GROUP:
    tl.constexpr, PARAM: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr, WHOLE_STEP:
    tl.constexpr, PART_STEP: tl.constexpr, RANGE_STEP: tl.constexpr, CHUNK: tl.constexpr, COUNTERS: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Noisy weights and their ranges, any number of programs.

    ``addresses`` int64 [weights, 2]: weight [count] DTYPE and logits [groups] float32, read; ``tickets`` int64
    [2 * tiles]: tile * 2**32 + row * 2 + (0: range, 1: noise), read; ``state`` int32 [COUNTERS + weights], 0
    before and after: next ticket, programs that left, from COUNTERS on the weights' range counters; ``partial``
    int32 [6, tiles * TILE / RANGE_STEP], scratch; ``found``, ``extremes``, ``noisy``: as the kernels of two
    launches write them.
    """
    ticket = tl.atomic_add(state, 1, sem="relaxed", scope="gpu")
    while ticket < tiles * 2:
        entry = tl.load(tickets + ticket)
        tile = entry >> 32
        row = (entry & 0xFFFFFFFF) >> 1
        counter = state + COUNTERS + row
        if entry & 1 == 0:
            _range_ticket(
                addresses, plan, row, tile, tiles * (TILE // RANGE_STEP), partial, counter, found, extremes, DTYPE,
                TILE, RANGE_STEP, CHUNK,
            )  # fmt: skip
        else:
            _noise_ticket(
                addresses, plan, row, tile, key, counter, found, noisy, low, high, GROUP, PARAM, KIND, DTYPE, TILE,
                WHOLE_STEP, PART_STEP, PTX,
            )  # fmt: skip
        ticket = tl.atomic_add(state, 1, sem="relaxed", scope="gpu")
    _leave(state, weights, COUNTERS, CHUNK)
