"""Blocks of 32 weights as GGUF has them: what each type makes of a row, in bytes and in values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCK = 32


class GgufType(NamedTuple):
    """A type of GGUF: its number in the file, and the bytes of a block."""

    name: str
    number: int
    block_bytes: int
    block: int = BLOCK


F32, F16, BF16 = GgufType("F32", 0, 4, 1), GgufType("F16", 1, 2, 1), GgufType("BF16", 30, 2, 1)
Q4_0, Q4_1, Q5_0 = GgufType("Q4_0", 2, 18), GgufType("Q4_1", 3, 20), GgufType("Q5_0", 6, 22)
Q5_1, Q8_0 = GgufType("Q5_1", 7, 24), GgufType("Q8_0", 8, 34)
BLOCK_TYPES = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)  # by size
BITS = {Q4_0: 4, Q4_1: 4, Q5_0: 5, Q5_1: 5, Q8_0: 8}
WITH_OFFSET = (Q4_1, Q5_1)


class Quantised(NamedTuple):
    """Blocks: uint8 `[blocks, bytes]`, and the float32 `[blocks, 32]` that a reader gets."""

    type: GgufType
    data: np.ndarray
    values: np.ndarray


def quantise(values: np.ndarray, kind: GgufType) -> Quantised:
    """float32 `[blocks, 32]` with the scale and the offset that each block's own values ask for."""
    most = (1 << BITS[kind]) - 1
    with np.errstate(all="ignore"):  # an infinite or zero scale is looked at by its error
        if kind in WITH_OFFSET:
            offsets = values.min(1).astype(np.float16)
            scales = ((values.max(1) - offsets.astype(np.float32)) / most).astype(np.float16)
        else:
            largest = np.take_along_axis(values, np.abs(values).argmax(1)[:, None], 1)[:, 0]
            # Q8_0 has 127 levels on either side; the others reach one further down than up.
            scales = (np.abs(largest) / 127 if kind is Q8_0 else largest / -((most + 1) // 2)).astype(np.float16)
            offsets = np.zeros_like(scales)
        wide, low = scales.astype(np.float32)[:, None], offsets.astype(np.float32)[:, None]
        levels = np.rint((values - low) / np.where(wide == 0, 1, wide))
    if kind in WITH_OFFSET:
        levels = levels.clip(0, most)
    elif kind is Q8_0:
        levels = levels.clip(-127, 127)
    else:
        half = (most + 1) // 2
        levels = levels.clip(-half, half - 1)
    return blocks_of(np.nan_to_num(levels).astype(np.int32), scales, offsets, kind)


def blocks_of(levels: np.ndarray, scales: np.ndarray, offsets: np.ndarray, kind: GgufType) -> Quantised:
    """Blocks of known levels: int32 `[blocks, 32]`, signed but for the types with an offset; float16 `[blocks]`."""
    scales, offsets = scales.astype("<f2"), offsets.astype("<f2")
    head = scales.view(np.uint8).reshape(-1, 2)
    if kind in WITH_OFFSET:
        head = np.concatenate([head, offsets.view(np.uint8).reshape(-1, 2)], axis=1)
    with np.errstate(all="ignore"):
        values = levels.astype(np.float32) * scales.astype(np.float32)[:, None]
        values = values + offsets.astype(np.float32)[:, None] if kind in WITH_OFFSET else values
    if kind is Q8_0:
        body = levels.astype(np.int8).view(np.uint8)
    else:
        stored = levels if kind in WITH_OFFSET else levels + (1 << BITS[kind] - 1)
        body = _nibbles(stored)
        if BITS[kind] == 5:
            body = np.concatenate([_fifth_bits(stored), body], axis=1)
    return Quantised(kind, np.ascontiguousarray(np.concatenate([head, body], axis=1)), values)


def _nibbles(levels: np.ndarray) -> np.ndarray:
    """The low four bits: byte i has level i below and level i + 16 above."""
    low = (levels & 15).astype(np.uint8)
    return low[:, :16] | (low[:, 16:] << 4)


def _fifth_bits(levels: np.ndarray) -> np.ndarray:
    """Four bytes: bit i is the fifth bit of level i."""
    return np.packbits((levels >> 4 & 1).astype(np.uint8), axis=1, bitorder="little")
