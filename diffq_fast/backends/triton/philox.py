"""Device functions for the noise of docs/philox.md; ``diffq_fast/reference/philox.py`` is their oracle.

A tile is ``TILE`` consecutive elements of one weight, starting at a multiple of ``TILE``: 2**32 blocks of
eight elements are a multiple of it, so all of a tile's blocks share the high counter word.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import cosine, log2, sine, square_root


@triton.jit
def _multiply_wide(word, MULTIPLIER: tl.constexpr):
    """High and low half of a 32 x 32 bit product: written so that it compiles to one wide multiplication."""
    product = word.to(tl.uint64) * MULTIPLIER
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox4x32(block_low, block_high, stream, key):
    """Ten rounds on the counter (block low, block high, stream, 0). Words that are scalars stay scalar
    work: for a tile's blocks that spares two of the twenty multiplications."""
    k0 = key.to(tl.uint32)
    k1 = (key >> 32).to(tl.uint32)
    hi0, lo0 = _multiply_wide(block_low, 0xD2511F53)
    hi1, lo1 = _multiply_wide(stream, 0xCD9E8D57)
    c0 = hi1 ^ block_high ^ k0
    c1 = lo1
    c2 = hi0 ^ k1
    c3 = lo0
    for _ in tl.static_range(9):
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
        hi0, lo0 = _multiply_wide(c0, 0xD2511F53)
        hi1, lo1 = _multiply_wide(c2, 0xCD9E8D57)
        c0 = hi1 ^ c1 ^ k0
        c2 = hi0 ^ c3 ^ k1
        c1 = lo1
        c3 = lo0
    return c0, c1, c2, c3


@triton.jit
def _fraction(half, ZERO: tl.constexpr):
    """``(h + 1/2 - ZERO) / 65536``, exact: the half-word becomes the mantissa of 2**23 + h without a
    conversion."""
    number = (half | 0x4B000000).to(tl.float32, bitcast=True)
    return (number - (8388608.0 + ZERO)) * 1.52587890625e-05 + 7.62939453125e-06


@triton.jit
def _pair_noise(word, CONFIG: tl.constexpr):
    """Noise of an even element and its odd neighbour from the word they share.

    Box-Muller's angle is turned by pi, into the range where sine and cosine are most exact; the sign that
    costs goes into the radius.
    """
    odd = _fraction(word >> 16, 32768)
    if CONFIG.noise_kind == "uniform":
        return _fraction(word & 0xFFFF, 32768), odd
    logarithm = log2(_fraction(word & 0xFFFF, 0), CONFIG.ptx)
    radius = -square_root(logarithm * -0.34657359027997264, CONFIG.ptx)
    angle = odd * 6.283185307179586
    return radius * cosine(angle, CONFIG.ptx), radius * sine(angle, CONFIG.ptx)


@triton.jit
def _noise_of_blocks(block_low, block_high, stream, key, CONFIG: tl.constexpr, TILE: tl.constexpr):
    """float32 ``[TILE]``: noise of the eight elements of each block."""
    c0, c1, c2, c3 = philox4x32(block_low, block_high, stream, key)
    words = tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (TILE // 2,))
    even, odd = _pair_noise(words, CONFIG)
    return tl.reshape(tl.join(even, odd), (TILE,))


@triton.jit
def tile_noise(begin, stream, key, CONFIG: tl.constexpr, TILE: tl.constexpr):
    """float32 ``[TILE]``: noise of elements ``begin ...``; ``begin`` int64, a multiple of ``TILE``."""
    block = begin // 8
    blocks = block.to(tl.uint32) + tl.arange(0, TILE // 8).to(tl.uint32)
    return _noise_of_blocks(blocks, (block >> 32).to(tl.uint32), stream, key, CONFIG, TILE)


@triton.jit
def span_noise(element, first, stream, key, CONFIG: tl.constexpr):
    """float32: noise of elements (int64 ``[groups, columns]``) that lie among the ``groups * columns`` from ``first``
    on. It is made for all of these at once, and each element takes its own."""
    ELEMENTS: tl.constexpr = CONFIG.groups * CONFIG.columns
    ALIGNED: tl.constexpr = CONFIG.groups * CONFIG.group_size % 8 == 0  # else up to seven more stand before the first
    SPAN: tl.constexpr = ELEMENTS if ALIGNED else 2 * ELEMENTS
    block = first // 8 + tl.arange(0, SPAN // 8)
    z = _noise_of_blocks(block.to(tl.uint32), (block >> 32).to(tl.uint32), stream, key, CONFIG, SPAN)
    place = tl.reshape((element - first).to(tl.int32) + (first % 8).to(tl.int32), (ELEMENTS,))
    return tl.reshape(tl.gather(z, place, 0), (CONFIG.groups, CONFIG.columns))
