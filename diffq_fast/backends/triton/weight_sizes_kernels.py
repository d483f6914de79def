"""What weights take in a file with learned bits: sums of bits and tables of widths, and the slopes of the bits.

A plan here counts groups as elements; in the place of the stream, which is the noise's, stand the weight's elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import ELEMENTS, GROUP_BEGIN, PLACE, PLAN_COLUMNS, PROGRAM_BEGIN, PROGRAMS, STREAM
from .arithmetic import exp2, greatest, least, log2, reciprocal
from .tiles import tile_of

SUM, LOWEST, HIGHEST, PART_COLUMNS = map(tl.constexpr, range(4))


@triton.jit
def _sigmoid(logit, CONFIG: tl.constexpr):
    return reciprocal(1.0 + exp2(logit * -1.4426950408889634, CONFIG.ptx), CONFIG.ptx)


@triton.jit
def _bits(logit, rule, CONFIG: tl.constexpr):
    """For "noise" ``log2(1 + 1 / step)``, where the rule's ends are binary logarithms of steps."""
    exponent = _sigmoid(logit, CONFIG) * (rule.high - rule.low) + rule.low
    if CONFIG.param == "noise":
        return log2(1.0 + exp2(exponent, CONFIG.ptx), CONFIG.ptx) - exponent
    return exponent


@triton.jit
def _slope(logit, rule, CONFIG: tl.constexpr):
    t = _sigmoid(logit, CONFIG)
    by_logit = t * (1.0 - t) * (rule.high - rule.low)
    if CONFIG.param == "noise":
        step = exp2(t * (rule.high - rule.low) + rule.low, CONFIG.ptx)
        return -by_logit * reciprocal(1.0 + step, CONFIG.ptx)
    return by_logit


@triton.jit
def bits_parts_kernel(tables, parts_ptr, rule, CONFIG: tl.constexpr):
    """Sum, smallest and largest of the bits of CONFIG.tile groups.

    ``tables``: addresses of logits [groups] float32, read
    ``parts_ptr`` [programs, PART_COLUMNS] float32, written

    One program handles one tile of one weight.
    """
    entry, groups, begin = tile_of(tables, CONFIG.tile)
    logits_ptr = tl.load(tables.addresses_ptr + entry).to(tl.pointer_type(tl.float32))
    sums = tl.full((CONFIG.part_step,), 0.0, tl.float32)
    lowest = tl.full((CONFIG.part_step,), float("inf"), tl.float32)
    highest = tl.full((CONFIG.part_step,), float("-inf"), tl.float32)
    stop = tl.minimum(begin + CONFIG.tile, groups)
    while begin < stop:
        group = begin + tl.arange(0, CONFIG.part_step)
        inside = group < groups
        bits = _bits(tl.load(logits_ptr + group, inside, 0.0), rule, CONFIG)
        sums += tl.where(inside, bits, 0.0)
        lowest = tl.minimum(lowest, tl.where(inside, bits, float("inf")))
        highest = tl.maximum(highest, tl.where(inside, bits, float("-inf")))
        begin += CONFIG.part_step
    part_ptr = parts_ptr + tl.program_id(0) * PART_COLUMNS
    tl.store(part_ptr + SUM, tl.sum(sums, 0))  # NaN where a bit is
    tl.store(part_ptr + LOWEST, least(lowest, 0))
    tl.store(part_ptr + HIGHEST, greatest(highest, 0))


@triton.jit
def _rounded_to_even(value):
    return (value + 12582912.0) - 12582912.0


@triton.jit
def _table_bits(lo, hi, bounds):
    """``ceil(log2(1 + round(hi) - lowest))``, by comparisons, for at most 128 widths."""
    lowest = tl.where(bounds.extra_bits < 0, tl.minimum(_rounded_to_even(lo), bounds.min_bits), bounds.min_bits)
    widths = 1.0 + _rounded_to_even(hi) - lowest
    power = tl.full(widths.shape, 1.0, tl.float32)
    bits = tl.full(widths.shape, 0.0, tl.float32)
    for _ in tl.static_range(8):
        bits += tl.where(widths > power, 1.0, 0.0)
        power *= 2.0
    return bits


@triton.jit(do_not_specialize=["group_size"])
def finish_sizes_kernel(tables, parts_ptr, sizes_ptr, group_size, bounds, rule, CONFIG: tl.constexpr):
    """``sizes[w]``: the elements' bits, and the table's.

    ``parts_ptr``: see :func:`bits_parts_kernel`, read; ``bounds``: min_bits and extra_bits
    ``sizes_ptr`` [weights] float32, written

    One program handles one weight.
    """
    entry = tl.program_id(0)
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    groups, elements = tl.load(plan_ptr + ELEMENTS), tl.load(plan_ptr + STREAM)
    part, parts = tl.load(plan_ptr + PROGRAM_BEGIN), tl.load(plan_ptr + PROGRAMS)
    stop = part + parts
    sums = tl.full((CONFIG.chunk,), 0.0, tl.float32)
    lowest = tl.full((CONFIG.chunk,), float("inf"), tl.float32)
    highest = tl.full((CONFIG.chunk,), float("-inf"), tl.float32)
    while part < stop:
        place = part + tl.arange(0, CONFIG.chunk)
        column_ptr = parts_ptr + place * PART_COLUMNS
        sums += tl.load(column_ptr + SUM, place < stop, 0.0)
        lowest = tl.minimum(lowest, tl.load(column_ptr + LOWEST, place < stop, float("inf")))
        highest = tl.maximum(highest, tl.load(column_ptr + HIGHEST, place < stop, float("-inf")))
        part += CONFIG.chunk
    logits_ptr = tl.load(tables.addresses_ptr + entry).to(tl.pointer_type(tl.float32))
    one = tl.full((1,), 0, tl.int32)
    last_bits = _bits(tl.load(logits_ptr + (groups - 1) + one, one + groups > 0, 0.0), rule, CONFIG)
    last = elements - (groups - 1) * group_size
    levels = (tl.sum(sums, 0) - last_bits) * group_size.to(tl.float32) + last_bits * last.to(tl.float32)
    levels += elements.to(tl.float32) * bounds.extra_bits
    lo, hi = least(lowest, 0) + bounds.extra_bits, greatest(highest, 0) + bounds.extra_bits
    table = _table_bits(lo + 0.0 * last_bits, hi + 0.0 * last_bits, bounds)
    tl.store(
        sizes_ptr + tl.load(plan_ptr + PLACE) + one,
        tl.where(one + groups > 0, levels + groups.to(tl.float32) * table, 0.0),
    )


@triton.jit(do_not_specialize=["group_size"])
def sizes_backward_kernel(tables, grads_ptr, grad_logits_ptr, group_size, rule, CONFIG: tl.constexpr):
    """``grad_logits = grad * elements of the group * d bits / d logit``.

    ``tables``: as for :func:`bits_parts_kernel`; ``grads_ptr`` [weights] float32, read
    ``grad_logits_ptr`` [groups of all weights] float32, written

    One program handles one tile of one weight.
    """
    entry, groups, begin = tile_of(tables, CONFIG.tile)
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    logits_ptr = tl.load(tables.addresses_ptr + entry).to(tl.pointer_type(tl.float32))
    to_ptr = grad_logits_ptr + tl.load(plan_ptr + GROUP_BEGIN)
    grad = tl.load(grads_ptr + tl.load(plan_ptr + PLACE))
    last = tl.load(plan_ptr + STREAM) - (groups - 1) * group_size
    stop = tl.minimum(begin + CONFIG.tile, groups)
    while begin < stop:
        group = begin + tl.arange(0, CONFIG.part_step)
        inside = group < groups
        slope = _slope(tl.load(logits_ptr + group, inside, 0.0), rule, CONFIG)
        size = tl.where(group == groups - 1, last, group_size).to(tl.float32)
        tl.store(to_ptr + group, slope * (grad * size), inside)
        begin += CONFIG.part_step
