"""PTX arithmetic on numpy arrays and scalars, as the ISA's manual defines it. Registers are unsigned integers."""

from __future__ import annotations

import numpy as np

f16, f32, f64 = np.float16, np.float32, np.float64
u16, u32, u64, i32, i64 = np.uint16, np.uint32, np.uint64, np.int32, np.int64
NAN = u32(0x7FFFFFFF).view(f32)

# -- float32 ---------------------------------------------------------------------------------------------------


def canonical(x):
    """``x`` with every NaN as the one that float32 instructions write."""
    square = np.dot(x, x)  # a sum of squares is NaN where a term is, and nowhere else: no inf - inf
    if square == square:
        return x
    return np.where(np.isnan(x), NAN, x)


def fma(a, b, c):
    """Rounded once: the product is exact in float64, the sum is rounded to odd there, and then to float32."""
    product = np.multiply(a, b, dtype=f64)
    addend = np.asarray(c, f64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = np.asarray(total).view(i64)
    inexact = (error != 0) & ((bits & 1) == 0) & np.isfinite(error)
    toward = np.where((error > 0) == (total > 0), i64(1), i64(-1))
    return canonical(np.where(inexact, bits + toward, bits).view(f64).astype(f32))


def each_half(operation, *pairs):
    """``operation`` on the two float32 that each 64-bit register holds (.f32x2)."""
    low, high = (
        np.asarray(operation(*((np.asarray(pair) >> u64(shift)).astype(u32).view(f32) for pair in pairs))).view(u32)
        for shift in (0, 32)
    )
    return (high.astype(u64) << u64(32)) | low


def flush(x):
    """Subnormals become zeros of their sign (.ftz)."""
    bits = x.view(u32)
    return np.where((bits & u32(0x7F800000)) == 0, bits & u32(0x80000000), bits).view(f32)


def minimum(a, b, nan):
    """``nan``: NaN wins (min.NaN), or else the other operand does."""
    return _extreme(a, b, np.minimum if nan else np.fmin, lambda x, y: x | y)


def maximum(a, b, nan):
    return _extreme(a, b, np.maximum if nan else np.fmax, lambda x, y: x & y)


def _extreme(a, b, choose, zeros):
    """-0 is less than +0."""
    result = np.asarray(choose(a, b))
    signs = zeros(np.asarray(a).view(u32), np.asarray(b).view(u32)).view(f32)
    return canonical(np.where((a == 0) & (b == 0), signs, result))


def is_nan(a, b):
    return np.isnan(a) | np.isnan(b)


# -- conversions -----------------------------------------------------------------------------------------------


def to_bf16(x):
    bits = np.asarray(x).view(u32)
    rounded = ((bits + (u32(0x7FFF) + ((bits >> u32(16)) & u32(1)))) >> u32(16)).astype(u16)
    return np.where(np.isnan(x), u16(0x7FFF), rounded)


def to_f16(x):
    return np.where(np.isnan(x), u16(0x7FFF), np.asarray(x).astype(f16).view(u16))


def from_bf16(half):
    return canonical((np.asarray(half).astype(u32) << u32(16)).view(f32))


def from_f16(half):
    return canonical(np.asarray(half).view(f16).astype(f32))


def pair(high, low):
    """Two 16-bit values in one register; the first operand goes into the upper half."""
    return (np.asarray(high).astype(u32) << u32(16)) | low


def to_integer(x, kind):
    """Toward zero, to the nearest value that ``kind`` has; NaN becomes 0."""
    limits = np.iinfo(kind)
    wide = np.trunc(np.asarray(x).astype(f64))
    inside = (wide >= float(limits.min)) & (wide < float(limits.max))
    ends = np.where(wide > 0, kind(limits.max), kind(limits.min))
    ends = np.where(np.isnan(wide), kind(0), ends)
    return np.where(inside, np.where(inside, wide, 0).astype(kind), ends)


# -- integers --------------------------------------------------------------------------------------------------


def shift_left(a, amount, bits):
    a = np.asarray(a)
    shifted = a << np.minimum(amount, bits - 1).astype(a.dtype)
    return np.where(amount >= bits, a.dtype.type(0), shifted)


def shift_right(a, amount, bits):
    """``a`` signed or unsigned; an amount beyond the width shifts everything out."""
    a = np.asarray(a)
    shifted = a >> np.minimum(amount, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(amount >= bits, a.dtype.type(0), shifted)


def funnel_left(low, high, amount):
    """shf.l.wrap: the upper 32 bits of the 64 that are shifted."""
    both = (np.asarray(high).astype(u64) << u64(32)) | low
    return ((both << (np.asarray(amount).astype(u64) & u64(31))) >> u64(32)).astype(u32)


def funnel_right(low, high, amount):
    both = (np.asarray(high).astype(u64) << u64(32)) | low
    return (both >> (np.asarray(amount).astype(u64) & u64(31))).astype(u32)


def product_high(a, b, wide):
    """Upper half of the product; ``wide``: the dtype twice as wide, None for 64 bits."""
    if wide is not None:
        half = wide(np.dtype(wide).itemsize * 4)
        narrow = np.asarray(a).dtype
        return ((np.asarray(a).astype(wide) * np.asarray(b).astype(wide)) >> half).astype(narrow)
    signed = np.asarray(a).dtype.kind == "i"
    x, y = np.asarray(a).view(u64), np.asarray(b).view(u64)
    high = _product_high_64(x, y)
    if not signed:
        return high
    return (high - np.where(a < 0, y, u64(0)) - np.where(b < 0, x, u64(0))).view(i64)


def _product_high_64(a, b):
    mask, half = u64(0xFFFFFFFF), u64(32)
    a_low, a_high, b_low, b_high = a & mask, a >> half, b & mask, b >> half
    middle = a_high * b_low + ((a_low * b_low) >> half)
    other = a_low * b_high + (middle & mask)
    return a_high * b_high + (middle >> half) + (other >> half)


def quotient(a, b):
    """Toward zero; by zero: all bits set, as the machine has it."""
    a, b = np.asarray(a), np.asarray(b)
    floor = a // np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "i":
        floor = floor + ((a - floor * b != 0) & ((a < 0) != (b < 0))).astype(a.dtype)
    return np.where(b == 0, ~a.dtype.type(0), floor)


def remainder(a, b):
    return a - quotient(a, b) * b


def bit_field(a, begin, length, signed, bits):
    """bfe: ``length`` bits from ``begin`` on; a signed one is filled with its last bit."""
    unsigned, integer = (u32, i32) if bits == 32 else (u64, i64)
    begin = np.asarray(begin).astype(i64) & 255
    length = np.asarray(length).astype(i64) & 255
    shifted = shift_right(a, begin, bits)
    mask = np.where(length >= bits, ~unsigned(0), shift_left(unsigned(1), length, bits) - unsigned(1))
    field = shifted & mask
    if not signed:
        return field
    last = np.clip(np.minimum(begin + length - 1, bits - 1), 0, bits - 1)
    sign = (np.asarray(a).view(unsigned) >> last.astype(unsigned)) & unsigned(1)
    filled = np.where((sign != 0) & (length > 0), field | ~mask, field)
    return np.asarray(filled).view(integer).view(unsigned)


def sum_of_halves(a, b, sign):
    """add and sub of 16x2: of the lower and the upper 16 bits, each by itself."""
    lower = np.uint32(0xFFFF)
    low = (a & lower) + (b & lower) if sign == "+" else (a & lower) - (b & lower)
    high = (a & ~lower) + (b & ~lower) if sign == "+" else (a & ~lower) - (b & ~lower)
    return (low & lower) | high


def permute(a, b, selector):
    """prmt: four bytes out of the eight of ``a`` and ``b``; a selector's upper bit spreads the byte's sign."""
    both = np.asarray(a).astype(u64) | (np.asarray(b).astype(u64) << u64(32))
    result = u64(0)
    for place in range(4):
        chosen = (np.asarray(selector).astype(u64) >> u64(4 * place)) & u64(15)
        byte = (both >> ((chosen & u64(7)) * u64(8))) & u64(255)
        sign = np.where((byte & u64(128)) != 0, u64(255), u64(0))
        result = result | (np.where((chosen & u64(8)) != 0, sign, byte) << u64(8 * place))
    return np.asarray(result).astype(u32)


def truth_table(a, b, c, table):
    """lop3: bit ``4 * a + 2 * b + c`` of ``table``."""
    result = np.zeros(np.broadcast(a, b, c).shape, u32)
    for place in range(8):
        if table >> place & 1:
            result |= (a if place & 4 else ~a) & (b if place & 2 else ~b) & (c if place & 1 else ~c)
    return result
