"""The forward of training: ``noisy = weight + ((hi - lo) * step) * z``, for all weights of a bucket in one
launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arguments import (
    ELEMENTS,
    FORWARD_LISTS,
    GROUP_BEGIN,
    LOGITS,
    OUTPUT_BEGIN,
    PLACE,
    PLAN_COLUMNS,
    STREAM,
    WEIGHT,
    Range,
)
from .arithmetic import greatest, least, step_of
from .levels import load_inside
from .philox import tile_noise
from .tiles import grouped, is_whole, load_range, load_tile, spread, store_ranges, store_tile, tile_of


class NoisyWeight(NamedTuple):
    """A weight that gets noise: addresses of what is read, its size and first group, its noise, where results go."""

    weight: Any
    logits: Any
    elements: Any
    group_begin: Any
    stream: Any
    key: Any
    ranges_ptr: Any
    noisy_ptr: Any
    rule: Any


@triton.jit
def noisy_weight_of(tables, entry, key_ptr, ranges_ptr, noisy_ptr, rule):
    addresses_ptr = tables.addresses_ptr + entry * FORWARD_LISTS
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    return NoisyWeight(
        tl.load(addresses_ptr + WEIGHT),
        tl.load(addresses_ptr + LOGITS),
        tl.load(plan_ptr + ELEMENTS),
        tl.load(plan_ptr + GROUP_BEGIN),
        tl.load(plan_ptr + STREAM).to(tl.uint32),
        tl.load(key_ptr),
        ranges_ptr,
        noisy_ptr + tl.multiple_of(tl.load(plan_ptr + OUTPUT_BEGIN), 16),
        rule,
    )


@triton.jit
def load_logits(address, begin, elements, GROUP: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr):
    """Logits of the tile's groups ``[TILE / GROUP]``; of each element ``[TILE]`` for a group that fits no
    tile; a scalar for one group (0)."""
    pointer = address.to(tl.pointer_type(tl.float32))
    if GROUP == 0:
        logit = tl.load(pointer)
    elif TILE % GROUP != 0:
        element = begin + tl.arange(0, TILE)
        logit = load_inside(pointer + element // GROUP, None if WHOLE else element < elements)
    else:
        group = begin // GROUP + tl.arange(0, TILE // GROUP)
        if WHOLE:
            logit = tl.load(tl.multiple_of(pointer, 16) + group)
        else:
            logit = tl.load(pointer + group, group * GROUP < elements, 0.0)
    return logit


@triton.jit
def _group_ranges(weight, begin, elements, GROUP: tl.constexpr, TILE: tl.constexpr):
    """Range of each of the tile's groups; what lies past the weight's end is left out."""
    inside = begin + tl.arange(0, TILE) < elements
    lo = least(grouped(tl.where(inside, weight, float("inf")), GROUP, TILE), 1)
    hi = greatest(grouped(tl.where(inside, weight, float("-inf")), GROUP, TILE), 1)
    return Range(lo, hi)


@triton.jit
def _noise_step(job, length, begin, CONFIG: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr):
    """STEP elements of one weight. Loads come first: making the noise hides their time."""
    value = load_tile(job.weight, begin, job.elements, 0.0, CONFIG.weight, STEP, WHOLE)
    logit = load_logits(job.logits, begin, job.elements, CONFIG.group_size, STEP, WHOLE)
    z = tile_noise(begin, job.stream, job.key, CONFIG, STEP)
    step = step_of(logit, job.rule, CONFIG)
    if CONFIG.per_group:
        ranges = _group_ranges(value, begin, job.elements, CONFIG.group_size, STEP)
        group = begin // CONFIG.group_size + tl.arange(0, STEP // CONFIG.group_size)
        store_ranges(job.ranges_ptr, job.group_begin + group, ranges, group * CONFIG.group_size < job.elements)
        amplitude = (ranges.hi - ranges.lo) * step
    else:
        amplitude = length * step
    if CONFIG.group_size != 0 and STEP % CONFIG.group_size == 0:
        amplitude = spread(amplitude, CONFIG.group_size, STEP)
    store_tile(job.noisy_ptr, begin, job.elements, value + amplitude * z, STEP, WHOLE)


@triton.jit
def noise_tile(job, length, begin, CONFIG: tl.constexpr):
    """One tile in steps of ``whole_step`` elements, as many as the registers hold well, or of ``part_step`` where it
    masks. ``length``: hi - lo of the weight, unless ``per_group``."""
    if is_whole(job.weight | job.logits, begin, job.elements, CONFIG.tile):
        for start in range(0, CONFIG.tile, CONFIG.whole_step):
            _noise_step(job, length, begin + start, CONFIG, CONFIG.whole_step, True)
    else:
        stop = tl.minimum(begin + CONFIG.tile, job.elements)
        while begin < stop:
            _noise_step(job, length, begin, CONFIG, CONFIG.part_step, False)
            begin += CONFIG.part_step


@triton.jit
def add_noise_kernel(tables, key_ptr, ranges_ptr, noisy_ptr, rule, CONFIG: tl.constexpr):
    """``noisy = weight + ((hi - lo) * step) * z``; groups divide a tile, or (not ``per_group``) have any size.

    ``tables``: addresses of weight [elements] of CONFIG.weight and logits [groups] float32, read
    ``key_ptr`` [] int64, read
    ``ranges_ptr`` [weights, 2] float32, read; [groups, 2], written, when ``per_group``
    ``noisy_ptr`` [all outputs] float32|bf16|f16, written

    One program handles one tile of one weight.
    """
    entry, _, begin = tile_of(tables, CONFIG.tile)
    job = noisy_weight_of(tables, entry, key_ptr, ranges_ptr, noisy_ptr, rule)
    length = 0.0
    if not CONFIG.per_group:
        extent = load_range(ranges_ptr, tl.load(tables.plan_ptr + entry * PLAN_COLUMNS + PLACE))
        length = extent.hi - extent.lo
    noise_tile(job, length, begin, CONFIG)
