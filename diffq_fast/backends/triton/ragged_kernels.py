"""Kernels for any group size: rows of a tile are groups, its columns walk along them.

For groups that do not divide a tile, and for the ranges of groups where nothing else is wanted. Noise is made
element by element here, which costs eight times a tile's: these are for completeness, not for speed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import greatest, least, rounded, step_and_derivative, step_of
from .backward_kernels import is_finite
from .noise import element_noise


@triton.jit
def _groups_of_program(plan, owners, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """Row of the weight, its size, this program's groups ``[ROWS]`` int64, and which of them exist."""
    row = tl.load(owners + tl.program_id(0))
    count = tl.load(plan + row * 8)
    group = (tl.program_id(0) - tl.load(plan + row * 8 + 1)) * ROWS + tl.arange(0, ROWS)
    return row, count, group, group * GROUP < count


@triton.jit
def _elements(group, start, count, GROUP: tl.constexpr, COLUMNS: tl.constexpr):
    """Elements ``[ROWS, COLUMNS]`` int64 from position ``start`` of each group, and which of them exist."""
    position = start + tl.arange(0, COLUMNS)[None, :]
    element = group[:, None] * GROUP + position
    return element, (position < GROUP) & (element < count)


@triton.jit
def _bounds_of(weight, group, count, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    lows = tl.full((ROWS, COLUMNS), float("inf"), tl.float32)
    highs = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    for start in range(0, GROUP, COLUMNS):
        element, inside = _elements(group, start, count, GROUP, COLUMNS)
        value = tl.load(weight + element, inside, 0.0).to(tl.float32)
        lows = tl.minimum(lows, tl.where(inside, value, float("inf")), tl.PropagateNan.ALL)
        highs = tl.maximum(highs, tl.where(inside, value, float("-inf")), tl.PropagateNan.ALL)
    return least(lows, 1), greatest(highs, 1)


@triton.jit
def group_range_kernel(
    addresses, plan, owners, found, FIELDS: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``(lo, hi)`` of each group. One program handles ROWS groups of one weight.

    ``addresses`` int64 [weights, FIELDS], the first one of weight [count] DTYPE, read; ``found`` float32
    [groups of all weights, 2], written.
    """
    row, count, group, exists = _groups_of_program(plan, owners, GROUP, ROWS)
    weight = tl.load(addresses + row * FIELDS).to(tl.pointer_type(DTYPE))
    lo, hi = _bounds_of(weight, group, count, GROUP, ROWS, COLUMNS)
    place = (tl.load(plan + row * 8 + 3) + group) * 2
    tl.store(found + place, lo, exists)
    tl.store(found + place + 1, hi, exists)


@triton.jit
def ragged_noise_kernel(
    addresses, plan, owners, key, found, noisy, low, high, GROUP: tl.constexpr, PARAM: tl.constexpr,
    KIND: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Ranges of groups and noisy weights. One program handles ROWS groups; pointers as in
    ``add_noise_kernel``."""
    row, count, group, exists = _groups_of_program(plan, owners, GROUP, ROWS)
    weight = tl.load(addresses + row * 2).to(tl.pointer_type(DTYPE))
    logits = tl.load(addresses + row * 2 + 1).to(tl.pointer_type(tl.float32))
    lo, hi = _bounds_of(weight, group, count, GROUP, ROWS, COLUMNS)
    plan += row * 8
    place = (tl.load(plan + 3) + group) * 2
    tl.store(found + place, lo, exists)
    tl.store(found + place + 1, hi, exists)
    amplitude = (hi - lo) * step_of(tl.load(logits + group, exists, 0.0), low, high, PARAM, PTX)
    key = tl.load(key)
    stream = tl.load(plan + 4).to(tl.uint32)
    noisy += tl.load(plan + 2)
    for start in range(0, GROUP, COLUMNS):
        element, inside = _elements(group, start, count, GROUP, COLUMNS)
        value = tl.load(weight + element, inside, 0.0).to(tl.float32)
        value += amplitude[:, None] * element_noise(element, stream, key, KIND, PTX)
        tl.store(noisy + element, rounded(value, noisy.dtype.element_ty), inside)


@triton.jit
def _noise_sums(
    grad, weight, grad_weight, group, count, lo, hi, stream, key, GROUP: tl.constexpr, PER_GROUP:
    tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Per group: sum of grad * z, and how many elements equal lo and hi. Copies the gradient."""
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    ties_lo = tl.zeros((ROWS, COLUMNS), tl.float32)
    ties_hi = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, GROUP, COLUMNS):
        element, inside = _elements(group, start, count, GROUP, COLUMNS)
        value = tl.load(grad + element, inside, 0.0).to(tl.float32)
        sums += value * element_noise(element, stream, key, KIND, PTX)
        if PER_GROUP:
            level = tl.load(weight + element, inside, float("nan")).to(tl.float32)
            ties_lo += (level == lo[:, None]).to(tl.float32)
            ties_hi += (level == hi[:, None]).to(tl.float32)
        else:
            tl.store(grad_weight + element, rounded(value, grad_weight.dtype.element_ty), inside)
    return tl.sum(sums, 1), tl.sum(ties_lo, 1), tl.sum(ties_hi, 1)


@triton.jit
def _add_to_group_extremes(
    grad,
    weight,
    grad_weight,
    group,
    count,
    lo,
    hi,
    share_lo,
    share_hi,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    for start in range(0, GROUP, COLUMNS):
        element, inside = _elements(group, start, count, GROUP, COLUMNS)
        value = tl.load(weight + element, inside, float("nan")).to(tl.float32)
        change = tl.where(value == hi[:, None], share_hi[:, None], 0.0)
        change -= tl.where(value == lo[:, None], share_lo[:, None], 0.0)
        result = tl.load(grad + element, inside, 0.0).to(tl.float32) + change
        tl.store(grad_weight + element, rounded(result, grad_weight.dtype.element_ty), inside)


@triton.jit
def ragged_backward_kernel(
    addresses, plan, owners, key, found, partial, grad_weight, grad_logits, low, high, GROUP: tl.constexpr,
    PER_GROUP: tl.constexpr, PARAM: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, WEIGHT:
    tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Gradients of ROWS groups of one weight; pointers as in ``backward_kernel``."""
    row, count, group, exists = _groups_of_program(plan, owners, GROUP, ROWS)
    addresses += row * 3
    plan += row * 8
    grad = tl.load(addresses).to(tl.pointer_type(GRAD))
    weight = tl.load(addresses + 1).to(tl.pointer_type(WEIGHT))
    logits = tl.load(addresses + 2).to(tl.pointer_type(tl.float32))
    grad_weight += tl.load(plan + 2)
    place = tl.load(plan + 3) + group
    bounds = place if PER_GROUP else tl.load(plan + 5) + group * 0
    lo = tl.load(found + bounds * 2, exists, 0.0)
    hi = tl.load(found + bounds * 2 + 1, exists, 0.0)
    sums, ties_lo, ties_hi = _noise_sums(
        grad, weight, grad_weight, group, count, lo, hi, tl.load(plan + 4).to(tl.uint32), tl.load(key), GROUP,
        PER_GROUP, KIND, ROWS, COLUMNS, PTX,
    )  # fmt: skip
    step, derivative = step_and_derivative(tl.load(logits + group, exists, 0.0), low, high, PARAM, PTX)
    gradient = (hi - lo) * sums * derivative
    finite = is_finite(gradient)
    tl.store(grad_logits + place, tl.where(finite, gradient, 0.0), exists)
    tl.store(partial + tl.program_id(0) * 2, tl.sum(tl.where(exists, sums * step, 0.0), 0))
    tl.store(partial + tl.program_id(0) * 2 + 1, tl.sum((exists & ~finite).to(tl.float32), 0))
    if PER_GROUP:
        share_lo = sums * step / tl.maximum(ties_lo, 1.0)
        share_hi = sums * step / tl.maximum(ties_hi, 1.0)
        _add_to_group_extremes(grad, weight, grad_weight, group, count, lo, hi, share_lo, share_hi, GROUP, COLUMNS)
