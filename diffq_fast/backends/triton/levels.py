"""Device functions between weights and levels: float32 as the method has it (``diffq_fast/reference``), bit for bit.

Division must round correctly and no product may be fused with a sum: ``div_rn`` between tensors, and launches
with ``enable_fp_fusion=False``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import INTERPRETED

# 1.5 * 2**23: added to a level and taken away again it rounds half to even; added alone, the level is the lower bits.
ROUNDING = tl.constexpr(12582912.0)
ROUNDING_BITS = tl.constexpr(0x4B400000)
HAS_FMA = tl.constexpr(not INTERPRETED)  # the interpreter rounds the product too


@triton.jit
def step_of_width(width):
    """``1 / (2**width - 1)`` for int32 ``width``."""
    highest = ((1 << width) - 1).to(tl.float32)
    return tl.div_rn(tl.full(highest.shape, 1.0, tl.float32), highest)


@triton.jit
def _near_quotient(dividend, divisor):
    """``dividend / divisor`` within half a unit in the last place and 2**-22 of one, and the correctly rounded
    reciprocal: of that and of what it lacks, which many dividends share, a product and a fused sum."""
    one = tl.full(divisor.shape, 1.0, tl.float32)
    inverse = tl.div_rn(one, divisor)
    lacking = tl.fma(inverse, -divisor, one) * inverse
    return tl.fma(dividend, inverse, dividend * lacking), inverse


@triton.jit
def divide(dividend, divisor, FUSED: tl.constexpr):
    """Correctly rounded ``dividend / divisor``. FUSED: one correction of a near quotient, which is right where that is
    within a unit in the last place and the reciprocal correctly rounded (P. Markstein, IBM J. Res. Dev. 34, 1990):
    four operations, for divisors between 2**-60 and 2**60."""
    if not FUSED:
        return tl.div_rn(dividend, divisor)
    quotient, inverse = _near_quotient(dividend, divisor)
    return tl.fma(tl.fma(quotient, -divisor, dividend), inverse, quotient)


@triton.jit
def may_fuse(ranges_ptr):
    """Whether :func:`divide` may be FUSED for a weight's one range."""
    length = tl.load(ranges_ptr + 1) - tl.load(ranges_ptr)
    return (length > 8.673617379884035e-19) & (length < 1.152921504606847e18)


@triton.jit
def rounded_level(value, lo, length, width, FUSED: tl.constexpr):
    """float32 ``ROUNDING + level``, the level rounded half to even; :func:`whole_number` and :func:`integer` take it
    out. Cut to the range before anything is rounded; NaN is level 0. FUSED: as in :func:`divide`, cut before the
    division, which keeps infinities out of its remainders."""
    if FUSED:
        share = divide(tl.minimum(tl.maximum(value - lo, 0.0), length), length, True)
    else:
        share = tl.div_rn(value - lo, length)
        share = tl.where((share > 0) & (length != 0), share, 0.0)
        share = tl.where(share < 1, share, 1.0)
    step = step_of_width(width)
    if HAS_FMA:
        # Not always the nearest quotient, but always one that rounds to the same level: the tests try every share
        # that lies beside a place where levels turn.
        level, _ = _near_quotient(share, step)
    else:
        level = tl.div_rn(share, step)
    return level + ROUNDING


@triton.jit
def whole_number(rounded):
    """The float32 level of a :func:`rounded_level`."""
    return rounded - ROUNDING


@triton.jit
def integer(rounded):
    """The int32 level of a :func:`rounded_level`."""
    return rounded.to(tl.int32, bitcast=True) - ROUNDING_BITS


@triton.jit
def number_of(level):
    """float32 of an int32 level, which becomes the mantissa of 2**23 + level without a conversion."""
    return (level | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def weight_of(number, lo, length, width):
    """float32 ``(level * step) * (hi - lo) + lo`` for a level as float32."""
    return (number * step_of_width(width)) * length + lo


@triton.jit
def load_inside(pointer, inside):
    """Loads where ``inside`` holds (None: everywhere), and gives 0 elsewhere."""
    return tl.load(pointer) if inside is None else tl.load(pointer, inside, 0)


@triton.jit
def lo_and_length(ranges_ptr, group, inside, PER_GROUP: tl.constexpr):
    """lo and hi - lo for each element, from the range of its group or the weight's only one."""
    place = group if PER_GROUP else group * 0
    lo = load_inside(ranges_ptr + place * 2, inside)
    return lo, load_inside(ranges_ptr + place * 2 + 1, inside) - lo


@triton.jit
def element_and_group(position, inside, order_ptr, GROUP: tl.constexpr, ORDERED: tl.constexpr):
    """Where the level at ``position`` among those of one width stands in the weight. ORDERED: the weight has one width
    only; else ``order_ptr`` int64 tells the groups of this width."""
    group = position // GROUP
    if ORDERED:
        element = position
    else:
        place = position - group * GROUP
        group = load_inside(order_ptr + group, inside)
        element = group * GROUP + place
    return element, group
