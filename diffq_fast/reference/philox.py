"""Counter-based noise in plain torch: the oracle of ``docs/philox.md``.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a 128-bit counter
and a 64-bit key into 128 random bits. Eight weights share one call: element ``e`` of stream ``s`` takes
half-word ``e % 8`` of the call with counter ``(e // 8, s, 0)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .options import check_kind

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
MASK32 = 0xFFFFFFFF
ELEMENTS_PER_BLOCK = 8


def _multiply_wide(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product; split in two so that int64 never overflows."""
    low_product = (word & 0xFFFF) * multiplier
    high_product = (word >> 16) * multiplier + (low_product >> 16)
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one shape holding 32-bit words, least significant first.
        key: two int64 tensors (broadcastable) holding 32-bit words.

    Returns:
        int64 ``[..., 4]``, each value in ``[0, 2**32)``.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply_wide(MULTIPLIERS[0], c0)
        high1, low1 = _multiply_wide(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + KEY_INCREMENTS[0]) & MASK32
        k1 = (k1 + KEY_INCREMENTS[1]) & MASK32
    return torch.stack([c0, c1, c2, c3], dim=-1)


def draws(key: Tensor, stream: int, begin: int, count: int) -> Tensor:
    """The 16-bit draws of elements ``begin … begin + count - 1``.

    Args:
        key: int64, 0-dim; its low 32 bits are k0, its high ones k1.
        stream: 32-bit index of the weight.
        begin, count: range of row-major element indices.

    Returns:
        int64 ``[count]`` on the key's device, each value in ``[0, 2**16)``.
    """
    begin_block = begin // ELEMENTS_PER_BLOCK
    end_block = -(-(begin + count) // ELEMENTS_PER_BLOCK)
    block = torch.arange(begin_block, end_block, dtype=torch.int64, device=key.device)
    zero = torch.zeros_like(block)
    words = philox4x32((block & MASK32, block >> 32, zero + stream, zero), (key & MASK32, (key >> 32) & MASK32))
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1).reshape(-1)
    skipped = begin - begin_block * ELEMENTS_PER_BLOCK
    return halves[skipped : skipped + count]


def uniform(key: Tensor, stream: int, begin: int, count: int) -> Tensor:
    """float32 ``[count]`` in (-1/2, 1/2) on a grid of 2**-16, mean of the grid exactly 0."""
    return (draws(key, stream, begin, count).to(torch.float32) + 0.5) / 65536 - 0.5


def gaussian(key: Tensor, stream: int, begin: int, count: int) -> Tensor:
    """float32 ``[count]`` from N(0, 1)/2, by Box-Muller on each pair (e even, e + 1)."""
    start = begin - begin % 2
    padded = count + begin % 2
    padded += padded % 2
    fractions = (draws(key, stream, start, padded).to(torch.float32) + 0.5) / 65536
    radius = torch.sqrt(-2 * torch.log(fractions[0::2])) / 2
    angle = 2 * math.pi * fractions[1::2]
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pairs.reshape(-1)[begin - start : begin - start + count]


def noise(key: Tensor, stream: int, begin: int, count: int, noise_kind: str) -> Tensor:
    """float32 ``[count]``: :func:`uniform` or :func:`gaussian` noise, in units of one quantisation step."""
    check_kind("noise", noise_kind)
    return uniform(key, stream, begin, count) if noise_kind == "uniform" else gaussian(key, stream, begin, count)
