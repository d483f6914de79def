"""The backward of training. The noise is made again from the key; every sum has one order, so results repeat
exactly.

The first launch reads each gradient once: it writes the weights' gradients, without the part that reaches the
two extremes, and the logits' gradients. The second one, small, sums the tiles' parts of the range's gradient
and adds it to the extremes, shared among ties.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import rounded, step_and_derivative
from .noise import tile_noise
from .noise_kernels import load_logits
from .tiles import groups_of, is_whole, load_tile, store_tile, tile_of


@triton.jit
def is_finite(values):
    return tl.abs(values) < float("inf")


@triton.jit
def shares_of(weight, lo, hi, AXIS: tl.constexpr):
    """``1[w = hi] / #hi - 1[w = lo] / #lo`` along ``AXIS``; ``lo`` and ``hi`` broadcast against
    ``weight``."""
    at_hi = (weight == hi).to(tl.float32)
    at_lo = (weight == lo).to(tl.float32)
    number_hi = tl.maximum(tl.sum(at_hi, AXIS, keep_dims=True), 1.0)
    number_lo = tl.maximum(tl.sum(at_lo, AXIS, keep_dims=True), 1.0)
    return at_hi / number_hi - at_lo / number_lo


@triton.jit
def _group_gradients(
    weight, logits, first, count, product, grad, length, found, grad_logits, low, high, GROUP: tl.constexpr,
    PER_GROUP: tl.constexpr, PARAM: tl.constexpr, WEIGHT: tl.constexpr, TILE: tl.constexpr, PTX: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of the tile's logits. Returns the gradient of its weights, and of each group
    its part of the range's gradient and whether its logit's gradient was not finite."""
    sums = tl.sum(groups_of(product, GROUP, TILE), 1)
    logit = load_logits(logits, first, count, GROUP, TILE, WHOLE)
    step, derivative = step_and_derivative(logit, low, high, PARAM, PTX)
    group = first // GROUP + tl.arange(0, TILE // GROUP)
    inside = group * GROUP < count
    if PER_GROUP:
        lo = tl.load(found + group * 2, inside, 0.0)
        hi = tl.load(found + group * 2 + 1, inside, 0.0)
        length = hi - lo
        value = groups_of(load_tile(weight, first, count, float("nan"), WEIGHT, TILE, WHOLE), GROUP, TILE)
        shares = shares_of(value, lo[:, None], hi[:, None], 1)
        grad += tl.reshape(shares * (sums * step)[:, None], (TILE,))
    gradient = length * sums * derivative
    finite = is_finite(gradient)
    gradient = tl.where(finite, gradient, 0.0)
    if WHOLE:
        tl.store(grad_logits + group, gradient)
        return grad, sums * step, (~finite).to(tl.int32)
    tl.store(grad_logits + group, gradient, inside)
    return grad, sums * step, (inside & ~finite).to(tl.int32)


@triton.jit
def _backward_tiles(
    grads, weight, logits, first, count, stream, key, length, found, grad_weight, grad_logits, low, high,
    GROUP: tl.constexpr, PER_GROUP: tl.constexpr, PARAM: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr,
    WEIGHT: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, PTX: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One tile in steps of STEP elements. Returns its part of the range's gradient (GROUP 0: its sum of
    grad * z) and how many gradients of logits were not finite."""
    sums = tl.zeros((STEP // (GROUP if GROUP else 1),), tl.float32)
    broken = tl.zeros((STEP // (GROUP if GROUP else 1),), tl.int32)
    begin = first
    stop = first + TILE if WHOLE else tl.minimum(first + TILE, count)
    while begin < stop:
        grad = load_tile(grads, begin, count, 0.0, GRAD, STEP, WHOLE)
        product = grad * tile_noise(begin, stream, key, KIND, STEP, PTX)
        if GROUP == 0:
            sums += product
        else:
            grad, part, bad = _group_gradients(
                weight, logits, begin, count, product, grad, length, found, grad_logits, low, high, GROUP,
                PER_GROUP, PARAM, WEIGHT, STEP, PTX, WHOLE,
            )  # fmt: skip
            sums += part
            broken += bad
        store_tile(grad_weight, begin, count, grad, STEP, WHOLE)
        begin += STEP
    return tl.sum(sums, 0), tl.sum(broken, 0)


@triton.jit
def backward_kernel(
    addresses, plan, owners, key, found, partial, grad_weight, grad_logits, low, high, GROUP: tl.constexpr,
    PER_GROUP: tl.constexpr, PARAM: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, WEIGHT:
    tl.constexpr, TILE: tl.constexpr, WHOLE_STEP: tl.constexpr, PART_STEP: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of one weight; GROUP divides both steps, or is 0.

    ``addresses`` int64 [weights, 3]: grad [count] GRAD, weight [count] WEIGHT (read only if PER_GROUP) and
    logits [groups] float32, read; ``found`` float32 [weights or groups, 2], read; ``partial`` float32
    [programs, 2]: parts of the range's gradient (GROUP 0: of the sum of grad * z) and of the count of
    non-finite values, written; ``grad_weight``: the common buffer, ``grad_logits`` float32 [groups of all
    weights], written.
    """
    tile, row, count, first = tile_of(plan, owners, TILE)
    grads = tl.load(addresses + row * 3)
    weight = tl.load(addresses + row * 3 + 1)
    logits = tl.load(addresses + row * 3 + 2)
    plan += row * 8
    grad_weight += tl.multiple_of(tl.load(plan + 2), 16)
    first_group = tl.load(plan + 3)
    grad_logits += first_group
    stream = tl.load(plan + 4).to(tl.uint32)
    key = tl.load(key)
    length = 0.0
    if PER_GROUP:
        found += first_group * 2
        used = grads | logits | weight
    else:
        found += tl.load(plan + 5) * 2
        length = tl.load(found + 1) - tl.load(found)
        used = grads | logits
    if is_whole(used, first, count, TILE):
        sums, broken = _backward_tiles(
            grads, weight, logits, first, count, stream, key, length, found, grad_weight, grad_logits, low,
            high, GROUP, PER_GROUP, PARAM, KIND, GRAD, WEIGHT, TILE, WHOLE_STEP, PTX, True,
        )  # fmt: skip
    else:
        sums, broken = _backward_tiles(
            grads, weight, logits, first, count, stream, key, length, found, grad_weight, grad_logits, low,
            high, GROUP, PER_GROUP, PARAM, KIND, GRAD, WEIGHT, TILE, PART_STEP, PTX, False,
        )  # fmt: skip
    tl.store(partial + tile * 2, sums)
    tl.store(partial + tile * 2 + 1, broken.to(tl.float32))


@triton.jit
def _sum_partials(partial, plan, CHUNK: tl.constexpr):
    """The two columns of a weight's partials, summed in float64 in a fixed order."""
    first = tl.load(plan + 1)
    number = tl.load(plan + 6)
    range_sums = tl.zeros((CHUNK,), tl.float64)
    broken = tl.zeros((CHUNK,), tl.float64)
    start = 0
    while start < number:
        at = start + tl.arange(0, CHUNK)
        range_sums += tl.load(partial + (first + at) * 2, at < number, 0.0)
        broken += tl.load(partial + (first + at) * 2 + 1, at < number, 0.0)
        start += CHUNK
    return tl.sum(range_sums, 0), tl.sum(broken, 0)


@triton.jit
def _add_at(grad, place, gradient, grad_weight):
    value = tl.load(grad + place).to(tl.float32) + gradient
    tl.store(grad_weight + place, rounded(value, grad_weight.dtype.element_ty))


@triton.jit
def _add_to_ties(
    grad, weight, count, lo, hi, number_lo, number_hi, gradient, grad_weight, part, parts, CHUNK: tl.constexpr
):
    """Compares the whole weight with its bounds; the weight's parts take turns."""
    share_lo = gradient / number_lo
    share_hi = gradient / number_hi
    start = part * CHUNK
    while start < count:
        element = start + tl.arange(0, CHUNK)
        value = tl.load(weight + element, element < count, float("nan")).to(tl.float32)
        change = tl.where(value == hi, share_hi, 0.0) - tl.where(value == lo, share_lo, 0.0)
        tied = (value == lo) | (value == hi)
        result = tl.load(grad + element, tied, 0.0).to(tl.float32) + change
        tl.store(grad_weight + element, rounded(result, grad_weight.dtype.element_ty), tied)
        start += parts * CHUNK


@triton.jit
def _add_range_gradient(
    addresses, plan, lo, hi, gradient, extremes, grad_weight, part, GRAD: tl.constexpr, WEIGHT: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradient of the range to the extremes. A constant weight (and NaN) has none."""
    grad = tl.load(addresses).to(tl.pointer_type(GRAD))
    weight = tl.load(addresses + 1).to(tl.pointer_type(WEIGHT))
    grad_weight += tl.load(plan + 2)
    extremes += tl.load(plan + 5) * 4
    number_lo = tl.load(extremes + 2)
    number_hi = tl.load(extremes + 3)
    if hi > lo:
        if (number_lo == 1) & (number_hi == 1):
            if part == 0:
                _add_at(grad, tl.load(extremes), -gradient, grad_weight)
                _add_at(grad, tl.load(extremes + 1), gradient, grad_weight)
        else:
            _add_to_ties(
                grad, weight, tl.load(plan), lo, hi, number_lo.to(tl.float32), number_hi.to(tl.float32),
                gradient, grad_weight, part.to(tl.int64), tl.load(plan + 7), CHUNK,
            )  # fmt: skip


@triton.jit
def finish_backward_kernel(
    addresses, plan, part_owners, found, extremes, partial, grad_weight, grad_logits, nonfinite, low, high,
    GROUP: tl.constexpr, PER_GROUP: tl.constexpr, PARAM: tl.constexpr, GRAD: tl.constexpr, WEIGHT:
    tl.constexpr, CHUNK: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Sums a weight's partials and finishes its gradients. One program handles one part of one weight.

    As :func:`backward_kernel`; ``part_owners`` int32 [programs, 2]: row, part; ``extremes`` int64 [weights,
    4], read; ``nonfinite`` float32 [weights], written.
    """
    row = tl.load(part_owners + tl.program_id(0) * 2)
    part = tl.load(part_owners + tl.program_id(0) * 2 + 1)
    addresses += row * 3
    plan += row * 8
    index = tl.load(plan + 5)
    range_sum, broken = _sum_partials(partial, plan, CHUNK)
    gradient = range_sum.to(tl.float32)
    if not PER_GROUP:
        lo = tl.load(found + index * 2)
        hi = tl.load(found + index * 2 + 1)
        if GROUP == 0:
            logit = tl.load(tl.load(addresses + 2).to(tl.pointer_type(tl.float32)))
            step, derivative = step_and_derivative(logit, low, high, PARAM, PTX)
            grad_logit = (hi - lo) * gradient * derivative
            tl.store(grad_logits + tl.load(plan + 3), tl.where(is_finite(grad_logit), grad_logit, 0.0))
            broken = tl.where(is_finite(grad_logit), 0.0, 1.0)
            gradient = (range_sum * step).to(tl.float32)
        _add_range_gradient(addresses, plan, lo, hi, gradient, extremes, grad_weight, part, GRAD, WEIGHT, CHUNK)
    tl.store(nonfinite + index, broken.to(tl.float32))
