"""Device functions between weights and levels: float32 as the method has it (``diffq_fast/reference``), bit for bit.

Division must round correctly and no product may be fused with a sum: ``div_rn`` between tensors, and launches
with ``enable_fp_fusion=False``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def step_of_width(width):
    """``1 / (2**width - 1)`` for int32 ``width``."""
    highest = ((1 << width) - 1).to(tl.float32)
    return tl.div_rn(tl.full(highest.shape, 1.0, tl.float32), highest)


@triton.jit
def divide(dividend, divisor, FUSED: tl.constexpr):
    """Correctly rounded ``dividend / divisor``. FUSED: by the correctly rounded reciprocal, which many
    dividends share, and two corrections of the quotient (P. Markstein, IBM J. Res. Dev. 34, 1990): five
    operations, for divisors between 2**-60 and 2**60. Needs a fused multiply-add, which the interpreter
    lacks."""
    if not FUSED:
        return tl.div_rn(dividend, divisor)
    inverse = tl.div_rn(tl.full(divisor.shape, 1.0, tl.float32), divisor)
    negative = -divisor
    quotient = dividend * inverse
    quotient = tl.fma(tl.fma(quotient, negative, dividend), inverse, quotient)
    return tl.fma(tl.fma(quotient, negative, dividend), inverse, quotient)


@triton.jit
def may_fuse(ranges_ptr):
    """Whether :func:`divide` may be FUSED for a weight's one range."""
    length = tl.load(ranges_ptr + 1) - tl.load(ranges_ptr)
    return (length > 8.673617379884035e-19) & (length < 1.152921504606847e18)


@triton.jit
def level_of(value, lo, length, width, FUSED: tl.constexpr):
    """int32 levels. Clamped before rounding, which is then half to even by adding and subtracting
    1.5 * 2**23. FUSED: cut to the range before the division, which keeps infinities out of its remainders; NaN
    is level 0 either way."""
    if FUSED:
        offset = tl.minimum(tl.maximum(value - lo, 0.0), length)
        level = divide(divide(offset, length, True), step_of_width(width), True)
    else:
        level = divide(divide(value - lo, length, False), step_of_width(width), False)
        highest = ((1 << width) - 1).to(tl.float32)
        level = tl.where((level > 0) & (length != 0), level, 0.0)
        level = tl.where(level < highest, level, highest)
    return ((level + 12582912.0) - 12582912.0).to(tl.int32)


@triton.jit
def weight_of(level, lo, length, width):
    """float32 ``(level * step) * (hi - lo) + lo``."""
    return (level.to(tl.float32) * step_of_width(width)) * length + lo


@triton.jit
def lo_and_length(ranges_ptr, group, inside, PER_GROUP: tl.constexpr):
    """lo and hi - lo for each element, from the range of its group or the weight's only one."""
    place = group if PER_GROUP else group * 0
    lo = tl.load(ranges_ptr + place * 2, inside, 0.0)
    return lo, tl.load(ranges_ptr + place * 2 + 1, inside, 0.0) - lo


@triton.jit
def element_and_group(position, inside, order_ptr, GROUP: tl.constexpr, ORDERED: tl.constexpr):
    """Where the level at ``position`` among those of one width stands in the weight. ORDERED: the weight has one width
    only; else ``order_ptr`` int64 tells the groups of this width."""
    group = position // GROUP
    if ORDERED:
        element = position
    else:
        place = position - group * GROUP
        group = tl.load(order_ptr + group, inside, 0)
        element = group * GROUP + place
    return element, group
