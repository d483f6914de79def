"""The noise of ``reference/philox.py``, bit for bit, on a CPU with numpy and in pieces that stay in its cache.

numpy multiplies 64-bit integers 2.5 times as fast as torch, and its products wrap, so that one of them holds both
halves of a 32 x 32 bit product. In the first two rounds half of the words are the same in all calls.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...reference import philox as reference
from ...reference.options import check_kind
from ...reference.philox import ELEMENTS_PER_BLOCK, KEY_INCREMENTS, MASK32, MULTIPLIERS
from .pieces import PIECE, array_of

Words = NDArray[np.uint64]
ROUNDS = 10


def noise(key: Tensor, stream: int, begin: int, count: int, noise_kind: str) -> Tensor:
    """float32 ``[count]``, see :func:`diffq_fast.reference.philox.noise`."""
    if not 0 <= stream <= MASK32:
        raise ValueError(f"noise: streams must be between 0 and 2**32 - 1, got {stream}")
    check_kind("noise", noise_kind)
    check_elements(begin, count)
    last = (begin + count - 1) // ELEMENTS_PER_BLOCK
    alike = begin // ELEMENTS_PER_BLOCK >> 32 == last >> 32  # the high words of the blocks' numbers
    if key.device.type != "cpu" or sys.byteorder != "little" or not alike or not count:
        return reference.noise(key, stream, begin, count, noise_kind)
    number = int(array_of(key))  # of a tensor on the CPU: nothing is waited for
    z = torch.empty(count, dtype=torch.float32, device="cpu")
    for start in range(0, count, PIECE):
        stop = min(start + PIECE, count)
        z[start:stop] = _noise(number, stream, begin + start, stop - start, noise_kind)
    return z


def check_elements(begin: int, count: int) -> None:
    """ValueError for elements that no counter counts."""
    if begin < 0 or count < 0 or begin + count >= 2**63:
        raise ValueError(f"noise: begin and count must not be negative nor reach 2**63, got {begin} and {count}")


def _noise(key: int, stream: int, begin: int, count: int, noise_kind: str) -> Tensor:
    first, end = begin // ELEMENTS_PER_BLOCK, -(-(begin + count) // ELEMENTS_PER_BLOCK)
    halves = _words(key, stream, first, end - first).view(np.uint16).reshape(-1)
    z = torch.from_numpy(halves.astype(np.float32))
    skipped = begin - first * ELEMENTS_PER_BLOCK
    if noise_kind == "uniform":
        return z.mul_(2.0**-16).add_(2.0**-17 - 0.5)[skipped : skipped + count]  # each of them exact
    pairs = z.add_(0.5).mul_(2.0**-16).view(-1, 2)
    radius = pairs[:, 0].log().mul_(-2).sqrt_().div_(2)
    angle = pairs[:, 1] * (2 * math.pi)
    pairs[:, 0] = radius * angle.cos()
    pairs[:, 1] = radius * angle.sin()
    return z[skipped : skipped + count]


def _words(key: int, stream: int, first: int, calls: int) -> Words:
    """uint64 ``[calls, 2]``: the four words of each call, the lower one of two first."""
    m0, m1 = map(np.uint64, MULTIPLIERS)
    low, half = np.uint64(MASK32), np.uint64(32)
    k0, k1 = (_round_keys(word, step) for word, step in zip((key, key >> 32), KEY_INCREMENTS, strict=True))
    # Rounds 1 and 2; what is the same in all calls is a Python number.
    p0 = np.arange(first & MASK32, (first & MASK32) + calls, dtype=np.uint64) * m0
    p1_all = MULTIPLIERS[1] * stream
    c0_all = (p1_all >> 32) ^ (first >> 32) ^ int(k0[0])
    p1 = ((p0 >> half) ^ k1[0]) * m1
    p0_all = MULTIPLIERS[0] * c0_all
    c0 = (p1 >> half) ^ (np.uint64(p1_all & MASK32) ^ k0[1])
    c1 = p1 & low
    c2 = (p0 & low) ^ (np.uint64(p0_all >> 32) ^ k1[1])
    c3: Words = np.full(calls, p0_all & MASK32, dtype=np.uint64)
    for number in range(2, ROUNDS - 1):
        np.multiply(c0, m0, out=p0)
        np.multiply(c2, m1, out=p1)
        for word, product, mixed, round_key in ((c0, p1, c1, k0), (c2, p0, c3, k1)):
            np.right_shift(product, half, out=word)
            np.bitwise_xor(word, mixed, out=word)
            np.bitwise_xor(word, round_key[number], out=word)
            np.bitwise_and(product, low, out=mixed)
    np.multiply(c0, m0, out=p0)
    np.multiply(c2, m1, out=p1)
    words = np.empty((calls, 2), dtype=np.uint64)
    for column, (word, product, mixed, round_key) in enumerate(((c0, p1, c1, k0), (c2, p0, c3, k1))):
        np.right_shift(product, half, out=word)
        np.bitwise_xor(word, mixed, out=word)
        np.bitwise_xor(word, round_key[-1], out=word)
        np.left_shift(product, half, out=product)
        np.bitwise_or(word, product, out=words[:, column])
    return words


def _round_keys(word: int, increment: int) -> Words:
    return np.array([(word + number * increment) & MASK32 for number in range(ROUNDS)], dtype=np.uint64)
