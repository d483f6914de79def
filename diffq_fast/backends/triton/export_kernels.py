"""Quantise, dequantise, and the native layout (docs/packed_format.md): float32 as SPEC.md writes it, bit for
bit.

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
def quantized(value, lo, length, width, FUSED: tl.constexpr):
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
def dequantized(level, lo, length, width):
    """float32 ``(level * step) * (hi - lo) + lo``."""
    return (level.to(tl.float32) * step_of_width(width)) * length + lo


@triton.jit
def offset_and_length(found, group, inside, PER_GROUP: tl.constexpr):
    """lo and hi - lo for each element, from the row of its group or the weight's only one."""
    row = group if PER_GROUP else group * 0
    lo = tl.load(found + row * 2, inside, 0.0)
    return lo, tl.load(found + row * 2 + 1, inside, 0.0) - lo


@triton.jit
def _requantize_tile(
    source, widths, found, result, first, count, GROUP: tl.constexpr, PER_GROUP: tl.constexpr,
    QUANTIZE: tl.constexpr, DEQUANTIZE: tl.constexpr, FUSED: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Elements ``first`` … of the weight, in rows that each lie in one group. WHOLE: all of them exist."""
    start = first + (tl.arange(0, ROWS) * COLUMNS)[:, None]
    element = start + tl.arange(0, COLUMNS)[None, :]
    group = start // GROUP if GROUP else start * 0
    begins = start == start if WHOLE else start < count
    width = tl.load(widths + group, begins, 1).to(tl.int32)
    if PER_GROUP:
        lo, length = offset_and_length(found, group, begins, True)
    else:
        lo, length = offset_and_length(found, tl.zeros((1, 1), tl.int32), tl.full((1, 1), True, tl.int1), False)
    made = tl.load(source + element) if WHOLE else tl.load(source + element, element < count, 0)
    if QUANTIZE:
        made = quantized(made.to(tl.float32), lo, length, width, FUSED)
    if DEQUANTIZE:
        made = dequantized(made, lo, length, width)
    made = made.to(result.dtype.element_ty)
    if WHOLE:
        tl.store(result + element, made)
    else:
        tl.store(result + element, made, element < count)


@triton.jit
def requantize_kernel(
    source, widths, found, result, count, GROUP: tl.constexpr, PER_GROUP: tl.constexpr, QUANTIZE: tl.constexpr,
    DEQUANTIZE: tl.constexpr, FUSED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Weights to levels (QUANTIZE), levels to weights (DEQUANTIZE), or weights by way of levels (both). One program
    handles ROWS * COLUMNS elements of one weight; COLUMNS divides GROUP, and GROUP 0 is one group.

    ``source`` [count] float32|bf16|f16, or int32 levels, read; ``widths`` uint8 [groups], read; ``found``
    float32 [1 or groups, 2], read; ``result`` [count] int32 levels, or weights of any of the dtypes, written.
    """
    first = tl.program_id(0).to(tl.int64) * (ROWS * COLUMNS)
    usual = first + ROWS * COLUMNS <= count
    if FUSED:
        scale = tl.load(found + 1) - tl.load(found)
        usual = usual & (scale > 8.673617379884035e-19) & (scale < 1.152921504606847e18)
    if usual:
        _requantize_tile(
            source, widths, found, result, first, count, GROUP, PER_GROUP, QUANTIZE, DEQUANTIZE, FUSED, True, ROWS,
            COLUMNS,
        )  # fmt: skip
    else:
        _requantize_tile(
            source, widths, found, result, first, count, GROUP, PER_GROUP, QUANTIZE, DEQUANTIZE, False, False, ROWS,
            COLUMNS,
        )  # fmt: skip


@triton.jit
def _lanes_of(count, WIDTH: tl.constexpr, LANES: tl.constexpr):
    """This program's lanes: level of row 0, distance to the next row's, place of word 0, which lanes
    exist. A full block has 32 lanes, the last one as few as hold its levels in 32 rows."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    block = lane // 32
    lanes = tl.minimum((count - block * 1024 + 31) // 32, 32)
    exists = lane % 32 < lanes
    return block * 1024 + lane % 32, lanes, block * 32 * WIDTH + lane % 32, exists


@triton.jit
def element_and_group(position, inside, order, GROUP: tl.constexpr, ORDERED: tl.constexpr):
    """Where the level at ``position`` of a stream stands in the weight. ORDERED: the weight has one width
    only."""
    group = position // GROUP
    if ORDERED:
        element = position
    else:
        place = position - group * GROUP
        group = tl.load(order + group, inside, 0)
        element = group * GROUP + place
    return element, group


@triton.jit
def _pack_lanes(
    source, found, order, words, count, lo, length, WIDTH: tl.constexpr, GROUP: tl.constexpr, PER_GROUP:
    tl.constexpr, ORDERED: tl.constexpr, QUANTIZE: tl.constexpr, FUSED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The words of this program's lanes; ``lo`` and ``length`` [LANES] of the weight unless PER_GROUP."""
    start, stride, place, exists = _lanes_of(count, WIDTH, LANES)
    word = tl.zeros((LANES,), tl.uint32)
    width = tl.full((LANES,), WIDTH, tl.int32)
    for row in tl.static_range(32):
        position = start + row * stride
        inside = exists & (position < count)
        element, group = element_and_group(position, inside, order, GROUP, ORDERED)
        level = tl.load(source + element, inside, 0)
        if QUANTIZE:
            if PER_GROUP:
                lo, length = offset_and_length(found, group, inside, True)
            level = tl.where(inside, quantized(level.to(tl.float32), lo, length, width, FUSED), 0)
        level = level.to(tl.uint32) & ((1 << WIDTH) - 1)
        word |= level << (row * WIDTH % 32)
        if row * WIDTH % 32 + WIDTH >= 32:
            tl.store(words + place + (row * WIDTH // 32) * stride, word.to(tl.int32, bitcast=True), exists)
            word = level >> (32 - row * WIDTH % 32) if row * WIDTH % 32 + WIDTH > 32 else level * 0


@triton.jit
def pack_kernel(
    source, found, order, words, count, WIDTH: tl.constexpr, GROUP: tl.constexpr, PER_GROUP: tl.constexpr,
    ORDERED: tl.constexpr, QUANTIZE: tl.constexpr, FUSED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Words of one stream of ``count`` levels. One program handles LANES lanes, each with up to 32 levels.

    ``source`` levels int32, or (QUANTIZE) the weight, read; ``found`` float32 [1 or groups, 2], read if
    QUANTIZE; ``order`` int64, groups of this width, read unless ORDERED; ``words`` int32 of this stream,
    written.
    """
    lo = tl.zeros((LANES,), tl.float32)
    length = lo
    if QUANTIZE and not PER_GROUP:
        lo, length = offset_and_length(found, tl.zeros((LANES,), tl.int32), lo == lo, False)
        scale = tl.load(found + 1) - tl.load(found)
        if FUSED and ((scale > 8.673617379884035e-19) & (scale < 1.152921504606847e18)):
            _pack_lanes(
                source,
                found,
                order,
                words,
                count,
                lo,
                length,
                WIDTH,
                GROUP,
                PER_GROUP,
                ORDERED,
                QUANTIZE,
                True,
                LANES,
            )
        else:
            _pack_lanes(
                source,
                found,
                order,
                words,
                count,
                lo,
                length,
                WIDTH,
                GROUP,
                PER_GROUP,
                ORDERED,
                QUANTIZE,
                False,
                LANES,
            )
    else:
        _pack_lanes(
            source,
            found,
            order,
            words,
            count,
            lo,
            length,
            WIDTH,
            GROUP,
            PER_GROUP,
            ORDERED,
            QUANTIZE,
            False,
            LANES,
        )


@triton.jit
def unpack_kernel(
    words, found, order, result, count, WIDTH: tl.constexpr, GROUP: tl.constexpr, PER_GROUP: tl.constexpr,
    ORDERED: tl.constexpr, DEQUANTIZE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Levels of one stream, or (DEQUANTIZE) weights; the inverse of :func:`pack_kernel`.

    ``words`` int32 of this stream, read; ``found``, ``order`` as there; ``result`` int32 levels or weights,
    written.
    """
    start, stride, place, exists = _lanes_of(count, WIDTH, LANES)
    width = tl.full((LANES,), WIDTH, tl.int32)
    if DEQUANTIZE and not PER_GROUP:
        lo, length = offset_and_length(found, tl.zeros((LANES,), tl.int32), width == WIDTH, False)
    word = tl.load(words + place, exists, 0).to(tl.uint32, bitcast=True)
    for row in tl.static_range(32):
        position = start + row * stride
        inside = exists & (position < count)
        level = word >> (row * WIDTH % 32)
        if row * WIDTH % 32 + WIDTH >= 32 and row < 31:
            word = tl.load(words + place + (row * WIDTH // 32 + 1) * stride, exists, 0).to(tl.uint32, bitcast=True)
            if row * WIDTH % 32 + WIDTH > 32:
                level |= word << (32 - row * WIDTH % 32)
        level = (level & ((1 << WIDTH) - 1)).to(tl.int32)
        element, group = element_and_group(position, inside, order, GROUP, ORDERED)
        if DEQUANTIZE:
            if PER_GROUP:
                lo, length = offset_and_length(found, group, inside, True)
            made = dequantized(level, lo, length, width)
            tl.store(result + element, made.to(result.dtype.element_ty), inside)
        else:
            tl.store(result + element, level, inside)
