"""The second launch of the backward: sums the first one's parts, and gives the extremes the gradient of the range."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arguments import (
    BACKWARD_LISTS,
    ELEMENTS,
    ENTRY,
    EXTREMES_COLUMNS,
    GRAD,
    GROUP_BEGIN,
    LOGITS,
    NONFINITE,
    OUTPUT_BEGIN,
    OWNER_COLUMNS,
    PART,
    PARTIAL_COLUMNS,
    PARTS,
    PLACE,
    PLACE_HI,
    PLACE_LO,
    PLAN_COLUMNS,
    PROGRAM_BEGIN,
    PROGRAMS,
    RANGE_GRADIENT,
    TIES_HI,
    TIES_LO,
    WEIGHT,
    Range,
)
from .arithmetic import is_finite, rounded, step_and_derivative
from .tiles import load_range


class Gradient(NamedTuple):
    """A weight's gradient as it came and as it goes, with the weight."""

    grad_ptr: Any
    weight_ptr: Any
    grad_weight_ptr: Any


@triton.jit
def _sum_partials(partial_ptr, plan_ptr, CHUNK: tl.constexpr):
    """The two columns of a weight's partials, summed in float64 in a fixed order."""
    begin = tl.load(plan_ptr + PROGRAM_BEGIN)
    number = tl.load(plan_ptr + PROGRAMS)
    range_gradients = tl.zeros((CHUNK,), tl.float64)
    nonfinite = tl.zeros((CHUNK,), tl.float64)
    start = 0
    while start < number:
        at = start + tl.arange(0, CHUNK)
        here_ptr = partial_ptr + (begin + at) * PARTIAL_COLUMNS
        range_gradients += tl.load(here_ptr + RANGE_GRADIENT, at < number, 0.0)
        nonfinite += tl.load(here_ptr + NONFINITE, at < number, 0.0)
        start += CHUNK
    return tl.sum(range_gradients, 0), tl.sum(nonfinite, 0)


@triton.jit
def _add_at(job, element, gradient):
    value = tl.load(job.grad_ptr + element).to(tl.float32) + gradient
    tl.store(job.grad_weight_ptr + element, rounded(value, job.grad_weight_ptr.dtype.element_ty))


@triton.jit
def _add_to_ties(job, extent, shares, plan_ptr, part, CHUNK: tl.constexpr):
    """Compares the whole weight with lo and hi; the weight's parts take turns."""
    elements = tl.load(plan_ptr + ELEMENTS)
    parts = tl.load(plan_ptr + PARTS)
    start = part.to(tl.int64) * CHUNK
    while start < elements:
        element = start + tl.arange(0, CHUNK)
        value = tl.load(job.weight_ptr + element, element < elements, float("nan")).to(tl.float32)
        change = tl.where(value == extent.hi, shares.hi, 0.0) - tl.where(value == extent.lo, shares.lo, 0.0)
        tied = (value == extent.lo) | (value == extent.hi)
        result = tl.load(job.grad_ptr + element, tied, 0.0).to(tl.float32) + change
        tl.store(job.grad_weight_ptr + element, rounded(result, job.grad_weight_ptr.dtype.element_ty), tied)
        start += parts * CHUNK


@triton.jit
def _add_range_gradient(job, extent, gradient, extremes_ptr, plan_ptr, part, CHUNK: tl.constexpr):
    """Gradient of the range to the extremes. A constant weight (and NaN) has none."""
    extremes_ptr += tl.load(plan_ptr + PLACE) * EXTREMES_COLUMNS
    ties_lo = tl.load(extremes_ptr + TIES_LO)
    ties_hi = tl.load(extremes_ptr + TIES_HI)
    if extent.hi > extent.lo:
        if (ties_lo == 1) & (ties_hi == 1):
            if part == 0:
                _add_at(job, tl.load(extremes_ptr + PLACE_LO), -gradient)
                _add_at(job, tl.load(extremes_ptr + PLACE_HI), gradient)
        else:
            shares = Range(gradient / ties_lo.to(tl.float32), gradient / ties_hi.to(tl.float32))
            _add_to_ties(job, extent, shares, plan_ptr, part, CHUNK)


@triton.jit
def finish_backward_kernel(tables, ranges_ptr, extremes_ptr, partial_ptr, gradients, rule, CONFIG: tl.constexpr):
    """Sums a weight's partials and finishes its gradients:
    ``grad_weight += range_gradient * (1[w = hi] / ties_hi - 1[w = lo] / ties_lo)``.

    ``tables``: as in ``backward_kernel``, the weight read too; owners [programs, 2] int32: entry, part
    ``ranges_ptr`` [weights, 2] float32, read
    ``extremes_ptr`` [weights, 4] int64, read
    ``partial_ptr`` [programs of the first launch, 2] float32, read
    ``gradients``: of weights, at the extremes, of logits where ``group_size`` is 0, and counts, written

    One program handles one part of one weight.
    """
    owner_ptr = tables.owners_ptr + tl.program_id(0) * OWNER_COLUMNS
    entry = tl.load(owner_ptr + ENTRY)
    part = tl.load(owner_ptr + PART)
    addresses_ptr = tables.addresses_ptr + entry * BACKWARD_LISTS
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    place = tl.load(plan_ptr + PLACE)
    range_sum, nonfinite = _sum_partials(partial_ptr, plan_ptr, CONFIG.chunk)
    gradient = range_sum.to(tl.float32)
    if not CONFIG.per_group:
        extent = load_range(ranges_ptr, place)
        if CONFIG.group_size == 0:
            logit = tl.load(tl.load(addresses_ptr + LOGITS).to(tl.pointer_type(tl.float32)))
            step, derivative = step_and_derivative(logit, rule, CONFIG)
            grad_logit = (extent.hi - extent.lo) * gradient * derivative
            finite = is_finite(grad_logit)
            tl.store(gradients.logits_ptr + tl.load(plan_ptr + GROUP_BEGIN), tl.where(finite, grad_logit, 0.0))
            nonfinite = tl.where(finite, 0.0, 1.0)
            gradient = (range_sum * step).to(tl.float32)
        job = Gradient(
            tl.load(addresses_ptr + GRAD).to(tl.pointer_type(CONFIG.grad)),
            tl.load(addresses_ptr + WEIGHT).to(tl.pointer_type(CONFIG.weight)),
            gradients.weights_ptr + tl.load(plan_ptr + OUTPUT_BEGIN),
        )
        _add_range_gradient(job, extent, gradient, extremes_ptr, plan_ptr, part, CONFIG.chunk)
    tl.store(gradients.nonfinite_ptr + place, nonfinite.to(tl.float32))
