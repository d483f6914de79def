"""Device functions on loaded values: approximate functions, the learned step, reductions that pass NaN on.

``PTX`` (constexpr) chooses single-instruction approximations on NVIDIA GPUs; elsewhere, and in the
interpreter, the library functions answer. Bounds on the approximations: docs/philox.md, section 3, and the
tests of this folder.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction


@triton.jit
def exp2(x, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return tl.exp2(x)


@triton.jit
def log2(x, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return tl.log2(x)


@triton.jit
def reciprocal(x, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return 1.0 / x


@triton.jit
def square_root(x, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise("sqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return tl.sqrt(x)


@triton.jit
def sine(x, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise("sin.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return tl.sin(x)


@triton.jit
def cosine(x, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise("cos.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return tl.cos(x)


# -- the parametrisation: reference/bits.py is the oracle of these two ------------------------------------------


@triton.jit
def step_of(logit, rule, CONFIG: tl.constexpr):
    """``1 / (2**bits - 1)``; ``rule``: bits at t = 0 and 1, or for "noise" the binary logarithms of the steps."""
    t = reciprocal(1.0 + exp2(logit * -1.4426950408889634, CONFIG.ptx), CONFIG.ptx)
    exponent = t * (rule.high - rule.low) + rule.low
    if CONFIG.param == "noise":
        return exp2(exponent, CONFIG.ptx)
    return reciprocal(exp2(exponent, CONFIG.ptx) - 1.0, CONFIG.ptx)


@triton.jit
def step_and_derivative(logit, rule, CONFIG: tl.constexpr):
    """:func:`step_of` and its derivative by the logit. Beyond ±80, where t is 0 or 1, u * t would be inf * 0."""
    within = tl.minimum(tl.maximum(logit, -80.0, tl.PropagateNan.ALL), 80.0, tl.PropagateNan.ALL)
    u = exp2(within * -1.4426950408889634, CONFIG.ptx)
    t = reciprocal(1.0 + u, CONFIG.ptx)
    exponent = t * (rule.high - rule.low) + rule.low
    slope = t * (u * t) * (0.6931471805599453 * (rule.high - rule.low))
    if CONFIG.param == "noise":
        step = exp2(exponent, CONFIG.ptx)
        return step, step * slope
    step = reciprocal(exp2(exponent, CONFIG.ptx) - 1.0, CONFIG.ptx)
    return step, -slope * (step + step * step)


@triton.jit
def is_finite(values):
    return tl.abs(values) < float("inf")


# -- reductions ----------------------------------------------------------------------------------------------


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b, tl.PropagateNan.ALL)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, tl.PropagateNan.ALL)


@triton.jit
def _least_on_device(values, AXIS: tl.constexpr):
    return tl.reduce(values, AXIS, _smaller)


@triton.jit
def _greatest_on_device(values, AXIS: tl.constexpr):
    return tl.reduce(values, AXIS, _larger)


@triton.jit
def _least_interpreted(values, AXIS: tl.constexpr):
    unknown = tl.max((values != values).to(tl.int32), AXIS) > 0
    return tl.where(unknown, float("nan"), tl.min(values, AXIS))


@triton.jit
def _greatest_interpreted(values, AXIS: tl.constexpr):
    unknown = tl.max((values != values).to(tl.int32), AXIS) > 0
    return tl.where(unknown, float("nan"), tl.max(values, AXIS))


# -- rounding ------------------------------------------------------------------------------------------------


@triton.jit
def _rounded_on_device(values, DTYPE: tl.constexpr):
    return values.to(DTYPE)


@triton.jit
def _rounded_interpreted(values, DTYPE: tl.constexpr):
    if tl.bfloat16 == DTYPE:
        bits = values.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        values = tl.where(values != values, values, bits.to(tl.float32, bitcast=True))
    return values.to(DTYPE)


INTERPRETED = isinstance(exp2, InterpretedFunction)

# NaN wins. The interpreter's general reduction is a thousand times slower than its minimum, which drops NaN.
least = _least_interpreted if INTERPRETED else _least_on_device
greatest = _greatest_interpreted if INTERPRETED else _greatest_on_device
# float32 to DTYPE, half to even. The interpreter cuts bfloat16 off.
rounded = _rounded_interpreted if INTERPRETED else _rounded_on_device
