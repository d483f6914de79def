"""The backward of training. The noise is made again from the key; every sum has one order, so results repeat
exactly.

The first launch reads each gradient once: it writes the weights' gradients, without the part that reaches the
two extremes, and the logits' gradients. The second one, small, sums the tiles' parts of the range's gradient
and adds it to the extremes, shared among ties.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .add_noise_kernels import load_logits
from .arguments import (
    BACKWARD_LISTS,
    ELEMENTS,
    GRAD,
    GROUP_BEGIN,
    LOGITS,
    NONFINITE,
    OUTPUT_BEGIN,
    PARTIAL_COLUMNS,
    PLACE,
    PLAN_COLUMNS,
    RANGE_GRADIENT,
    STREAM,
    WEIGHT,
)
from .arithmetic import is_finite, step_and_derivative
from .philox import tile_noise
from .tiles import grouped, is_whole, load_range, load_ranges, load_tile, store_tile, tile_of


class WeightGradient(NamedTuple):
    """A weight whose gradients are wanted: addresses of what is read, its size, its noise, its ranges, and where the
    results go. ``length``: hi - lo of the weight, 0 where each group has its range."""

    grad: Any
    weight: Any
    logits: Any
    elements: Any
    stream: Any
    key: Any
    ranges_ptr: Any
    length: Any
    grad_weight_ptr: Any
    grad_logits_ptr: Any
    rule: Any


@triton.jit
def gradient_of(tables, entry, key_ptr, ranges_ptr, gradients, rule, CONFIG: tl.constexpr):
    addresses_ptr = tables.addresses_ptr + entry * BACKWARD_LISTS
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    group_begin = tl.load(plan_ptr + GROUP_BEGIN)
    if CONFIG.per_group:
        ranges_ptr += group_begin * 2
        length = 0.0
    else:
        ranges_ptr += tl.load(plan_ptr + PLACE) * 2
        extent = load_range(ranges_ptr, 0)
        length = extent.hi - extent.lo
    return WeightGradient(
        tl.load(addresses_ptr + GRAD),
        tl.load(addresses_ptr + WEIGHT),
        tl.load(addresses_ptr + LOGITS),
        tl.load(plan_ptr + ELEMENTS),
        tl.load(plan_ptr + STREAM).to(tl.uint32),
        tl.load(key_ptr),
        ranges_ptr,
        length,
        gradients.weights_ptr + tl.multiple_of(tl.load(plan_ptr + OUTPUT_BEGIN), 16),
        gradients.logits_ptr + group_begin,
        rule,
    )


@triton.jit
def store_partials(partial_ptr, range_gradient, nonfinite):
    """This program's parts of the gradient of the range (``group_size`` 0: of the sum of grad * z) and of the count of
    non-finite gradients."""
    partial_ptr += tl.program_id(0) * PARTIAL_COLUMNS
    tl.store(partial_ptr + RANGE_GRADIENT, range_gradient)
    tl.store(partial_ptr + NONFINITE, nonfinite)


@triton.jit
def _carried_to_extremes(weight, ranges, gradient):
    """The ``gradient`` of each range shared among the elements of its group ``weight[i]`` that equal hi, less the same
    of those that equal lo. The others get 0 even of an infinite gradient, and so do constant groups."""
    at_hi = weight == ranges.hi[:, None]
    at_lo = weight == ranges.lo[:, None]
    carried = tl.where(ranges.hi > ranges.lo, gradient, 0.0)
    share_hi = carried / tl.maximum(tl.sum(at_hi.to(tl.float32), 1), 1.0)
    share_lo = carried / tl.maximum(tl.sum(at_lo.to(tl.float32), 1), 1.0)
    return tl.where(at_hi, share_hi[:, None], 0.0) - tl.where(at_lo, share_lo[:, None], 0.0)


@triton.jit
def _group_gradients(job, begin, product, grad, CONFIG: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr):
    """Writes the gradients of the logits of STEP elements. Returns the gradient of these elements, and of each group
    its part of the range's gradient and whether its logit's gradient was not finite."""
    sums = tl.sum(grouped(product, CONFIG.group_size, STEP), 1)
    logit = load_logits(job.logits, begin, job.elements, CONFIG.group_size, STEP, WHOLE)
    step, derivative = step_and_derivative(logit, job.rule, CONFIG)
    group = begin // CONFIG.group_size + tl.arange(0, STEP // CONFIG.group_size)
    inside = group * CONFIG.group_size < job.elements
    length = job.length
    if CONFIG.per_group:
        ranges = load_ranges(job.ranges_ptr, group, inside)
        length = ranges.hi - ranges.lo
        value = load_tile(job.weight, begin, job.elements, float("nan"), CONFIG.weight, STEP, WHOLE)
        carried = _carried_to_extremes(grouped(value, CONFIG.group_size, STEP), ranges, sums * step)
        grad += tl.reshape(carried, (STEP,))
    gradient = length * sums * derivative
    finite = is_finite(gradient)
    gradient = tl.where(finite, gradient, 0.0)
    if WHOLE:
        tl.store(job.grad_logits_ptr + group, gradient)
        return grad, sums * step, (~finite).to(tl.int32)
    tl.store(job.grad_logits_ptr + group, gradient, inside)
    return grad, sums * step, (inside & ~finite).to(tl.int32)


@triton.jit
def _backward_tile(job, begin, CONFIG: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr):
    """One tile in steps of STEP elements. Returns its part of the range's gradient (``group_size`` 0: its sum of
    grad * z) and how many gradients of logits were not finite."""
    sums = tl.zeros((STEP // (CONFIG.group_size if CONFIG.group_size else 1),), tl.float32)
    nonfinite = tl.zeros((STEP // (CONFIG.group_size if CONFIG.group_size else 1),), tl.int32)
    stop = begin + CONFIG.tile if WHOLE else tl.minimum(begin + CONFIG.tile, job.elements)
    while begin < stop:
        grad = load_tile(job.grad, begin, job.elements, 0.0, CONFIG.grad, STEP, WHOLE)
        product = grad * tile_noise(begin, job.stream, job.key, CONFIG, STEP)
        if CONFIG.group_size == 0:
            sums += product
        else:
            grad, part, unusual = _group_gradients(job, begin, product, grad, CONFIG, STEP, WHOLE)
            sums += part
            nonfinite += unusual
        store_tile(job.grad_weight_ptr, begin, job.elements, grad, STEP, WHOLE)
        begin += STEP
    return tl.sum(sums, 0), tl.sum(nonfinite, 0)


@triton.jit
def backward_kernel(tables, key_ptr, ranges_ptr, partial_ptr, gradients, rule, CONFIG: tl.constexpr):
    """``grad_logit = (hi - lo) * sum(grad * z) * step'``; the group size divides both steps, or is 0.

    ``tables``: addresses of grad [elements] of CONFIG.grad, weight [elements] of CONFIG.weight (read only if
    ``per_group``) and logits [groups] float32, read
    ``key_ptr`` [] int64, read
    ``ranges_ptr`` [weights or groups, 2] float32, read
    ``partial_ptr`` [programs, 2] float32, written
    ``gradients``: of weights and of logits, written

    One program handles one tile of one weight.
    """
    entry, elements, begin = tile_of(tables, CONFIG.tile)
    job = gradient_of(tables, entry, key_ptr, ranges_ptr, gradients, rule, CONFIG)
    used = job.grad | job.logits | job.weight if CONFIG.per_group else job.grad | job.logits
    if is_whole(used, begin, elements, CONFIG.tile):
        sums, nonfinite = _backward_tile(job, begin, CONFIG, CONFIG.whole_step, True)
    else:
        sums, nonfinite = _backward_tile(job, begin, CONFIG, CONFIG.part_step, False)
    store_partials(partial_ptr, sums, nonfinite.to(tl.float32))
