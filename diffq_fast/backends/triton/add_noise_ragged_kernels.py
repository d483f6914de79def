"""Training's kernels for groups that do not divide a tile.

A program's elements lie side by side: their noise is made as a tile's, and each takes its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .add_noise_backward_kernels import gradient_of, store_partials
from .add_noise_kernels import noisy_weight_of
from .arguments import FORWARD_LISTS, WEIGHT, Range
from .arithmetic import is_finite, rounded, step_and_derivative, step_of
from .philox import span_noise
from .ragged_groups import elements_of_groups, first_of_program, groups_of_program, ranges_of_groups
from .tiles import load_ranges, store_ranges


@triton.jit
def ragged_noise_kernel(tables, key_ptr, ranges_ptr, noisy_ptr, rule, CONFIG: tl.constexpr):
    """``noisy = weight + ((hi - lo) * step) * z``, ranges per group; pointers as in ``add_noise_kernel``.

    One program handles ``groups`` groups of one weight.
    """
    entry, elements, group, exists = groups_of_program(tables, CONFIG)
    weight_ptr = tl.load(tables.addresses_ptr + entry * FORWARD_LISTS + WEIGHT).to(tl.pointer_type(CONFIG.weight))
    ranges = ranges_of_groups(weight_ptr, group, elements, CONFIG)
    job = noisy_weight_of(tables, entry, key_ptr, ranges_ptr, noisy_ptr, rule)  # here: it would take registers above
    logits_ptr = job.logits.to(tl.pointer_type(tl.float32))
    store_ranges(ranges_ptr, job.group_begin + group, ranges, exists)
    amplitude = (ranges.hi - ranges.lo) * step_of(tl.load(logits_ptr + group, exists, 0.0), rule, CONFIG)
    first = first_of_program(tables, entry, CONFIG)
    for start in range(0, CONFIG.group_size, CONFIG.columns):
        element, inside = elements_of_groups(group, start, elements, CONFIG)
        z = span_noise(element, first + start, job.stream, job.key, CONFIG)
        value = tl.load(weight_ptr + element, inside, 0.0).to(tl.float32) + amplitude[:, None] * z
        tl.store(job.noisy_ptr + element, rounded(value, job.noisy_ptr.dtype.element_ty), inside)


@triton.jit
def _noise_sums(job, group, first, ranges, CONFIG: tl.constexpr):
    """Per group, the first of which begins at element ``first``: sum of grad * z, and how many elements equal lo and
    hi. Unless ``per_group``, copies the gradient."""
    grad_ptr = job.grad.to(tl.pointer_type(CONFIG.grad))
    weight_ptr = job.weight.to(tl.pointer_type(CONFIG.weight))
    sums = tl.full((CONFIG.groups, CONFIG.columns), 0.0, tl.float32)
    ties_lo = tl.full((CONFIG.groups, CONFIG.columns), 0.0, tl.float32)
    ties_hi = tl.full((CONFIG.groups, CONFIG.columns), 0.0, tl.float32)
    for start in range(0, CONFIG.group_size, CONFIG.columns):
        element, inside = elements_of_groups(group, start, job.elements, CONFIG)
        grad = tl.load(grad_ptr + element, inside, 0.0).to(tl.float32)
        sums += grad * span_noise(element, first + start, job.stream, job.key, CONFIG)
        if CONFIG.per_group:
            value = tl.load(weight_ptr + element, inside, float("nan")).to(tl.float32)
            ties_lo += (value == ranges.lo[:, None]).to(tl.float32)
            ties_hi += (value == ranges.hi[:, None]).to(tl.float32)
        else:
            tl.store(job.grad_weight_ptr + element, rounded(grad, job.grad_weight_ptr.dtype.element_ty), inside)
    return tl.sum(sums, 1), tl.sum(ties_lo, 1), tl.sum(ties_hi, 1)


@triton.jit
def _add_to_group_extremes(job, group, ranges, shares, CONFIG: tl.constexpr):
    """Copies the gradient, and adds each group's ``shares`` to those of its elements that equal lo and hi."""
    grad_ptr = job.grad.to(tl.pointer_type(CONFIG.grad))
    weight_ptr = job.weight.to(tl.pointer_type(CONFIG.weight))
    for start in range(0, CONFIG.group_size, CONFIG.columns):
        element, inside = elements_of_groups(group, start, job.elements, CONFIG)
        value = tl.load(weight_ptr + element, inside, float("nan")).to(tl.float32)
        change = tl.where(value == ranges.hi[:, None], shares.hi[:, None], 0.0)
        change -= tl.where(value == ranges.lo[:, None], shares.lo[:, None], 0.0)
        result = tl.load(grad_ptr + element, inside, 0.0).to(tl.float32) + change
        tl.store(job.grad_weight_ptr + element, rounded(result, job.grad_weight_ptr.dtype.element_ty), inside)


@triton.jit
def ragged_backward_kernel(tables, key_ptr, ranges_ptr, partial_ptr, gradients, rule, CONFIG: tl.constexpr):
    """The gradients of :func:`ragged_noise_kernel`; pointers as in ``backward_kernel``.

    One program handles ``groups`` groups of one weight.
    """
    entry, _, group, exists = groups_of_program(tables, CONFIG)
    job = gradient_of(tables, entry, key_ptr, ranges_ptr, gradients, rule, CONFIG)
    ranges = load_ranges(job.ranges_ptr, group if CONFIG.per_group else group * 0, exists)
    sums, ties_lo, ties_hi = _noise_sums(job, group, first_of_program(tables, entry, CONFIG), ranges, CONFIG)
    logit = tl.load(job.logits.to(tl.pointer_type(tl.float32)) + group, exists, 0.0)
    step, derivative = step_and_derivative(logit, rule, CONFIG)
    gradient = (ranges.hi - ranges.lo) * sums * derivative
    finite = is_finite(gradient)
    tl.store(job.grad_logits_ptr + group, tl.where(finite, gradient, 0.0), exists)
    nonfinite = tl.sum((exists & ~finite).to(tl.float32), 0)
    store_partials(partial_ptr, tl.sum(tl.where(exists, sums * step, 0.0), 0), nonfinite)
    if CONFIG.per_group:
        carried = tl.where(ranges.hi > ranges.lo, sums * step, 0.0)  # a constant group has none, though it be infinite
        shares = Range(carried / tl.maximum(ties_lo, 1.0), carried / tl.maximum(ties_hi, 1.0))
        _add_to_group_extremes(job, group, ranges, shares, CONFIG)
