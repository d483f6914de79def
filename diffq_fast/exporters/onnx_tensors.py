"""Levels as ONNX has them: integers of 2, 4, 8 or 16 bits with scales, for DequantizeLinear and for MatMulNBits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .levels import Levels, packed_bytes

LEAST_BLOCK, MOST_BLOCK = 16, 256  # of MatMulNBits, a power of two
NBITS = (4, 8)
RANGED_NBITS = NBITS[:1]  # ranges need zero points that are floats, which onnxruntime has not got for 8 bits
# With such blocks, or larger ones, and int8 activations onnxruntime multiplies with 2 bits; else it takes far longer
# than with floats.
LEAST_BLOCK_OF_TWO_BITS = 32


def container(bits: int, available: tuple[int, ...]) -> int | None:
    """The least of the available widths that holds `bits`."""
    return next((width for width in sorted(available) if width >= bits), None)


class Grouped(NamedTuple):
    """For DequantizeLinear: integers of a shape, with one scale and offset, or one for each index of the first axis.

    levels: flat, padded with zeros to the shape. The first `count` of what comes out are the weight.
    """

    levels: np.ndarray
    shape: tuple[int, ...]
    scales: np.ndarray
    offsets: np.ndarray

    @property
    def alone(self) -> bool:
        """Whether all have one scale and one offset."""
        return not self.scales.ndim


def grouped(levels: Levels, shape: tuple[int, ...]) -> Grouped:
    """The weight's own shape where its groups allow it, else one row for each group."""
    count, size = len(levels.levels), levels.group_size
    scales, offsets = levels.scales, levels.offsets
    if np.all(scales == scales[:1]) and np.all(offsets == offsets[:1]):
        return Grouped(levels.levels, shape, scales[:1].reshape(()), offsets[:1].reshape(()))
    if shape and shape[0] == len(scales) and count == size * len(scales):
        return Grouped(levels.levels, shape, scales, offsets)
    padded = np.zeros(len(scales) * size, np.int32)
    padded[:count] = levels.levels
    return Grouped(padded, (len(scales), size), scales, offsets)


class Blocks(NamedTuple):
    """For MatMulNBits, which multiplies with the transposed weight `[rows, columns]` of blocks of a row.

    quantised: uint8 `[rows, blocks of a row, bytes of a block]`. scales: float32 `[rows * blocks of a row]`.
    zero_points: float32 like the scales, or None: the middle, 2^(bits - 1). values: float32 `[rows, columns]`.
    """

    bits: int
    block: int
    quantised: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    values: np.ndarray


def block_size(levels: Levels, columns: int) -> int | None:
    """The largest block that lies in one group in every row, or None if even the least does not."""
    alone = np.all(levels.scales == levels.scales[:1]) and np.all(levels.offsets == levels.offsets[:1])
    if not columns:
        return None
    size = columns if alone or levels.group_size % columns == 0 else levels.group_size
    if columns % size:
        return None
    if size == columns:  # a row's last block may be shorter than the others
        return max(LEAST_BLOCK, min(MOST_BLOCK, 1 << (columns - 1).bit_length()))
    block = math.gcd(size, MOST_BLOCK)
    return block if block >= LEAST_BLOCK else None


def blocks(levels: Levels, shape: tuple[int, ...], activations: str = "float") -> Blocks | None:
    """A matrix for MatMulNBits; None where its groups or the bits of its levels do not fit."""
    if len(shape) != 2 or not len(levels.levels):
        return None
    block = block_size(levels, shape[1])
    if block is None:
        return None
    widths: tuple[int, ...] = NBITS if levels.signed else RANGED_NBITS
    if levels.signed and activations == "int8" and block >= LEAST_BLOCK_OF_TWO_BITS:
        widths = (2, *NBITS)
    bits = container(levels.bits, widths)
    if bits is None:
        return None
    rows, columns = shape
    a_row = -(-columns // block)
    first = np.minimum(np.arange(a_row) * block, columns - 1)
    group = (np.arange(rows)[:, None] * columns + first) // levels.group_size  # of each block
    scales, offsets = levels.scales[group], levels.offsets[group]
    middle = 1 << bits - 1
    stored = np.full((rows, a_row * block), middle if levels.signed else 0, np.int32)
    stored[:, :columns] = levels.levels.reshape(shape) + (middle if levels.signed else 0)
    zeros = None
    if not levels.signed:
        flat = scales == 0  # a constant group: every level is 0
        scales = np.where(flat, np.float32(1), scales)
        zeros = (-offsets / scales).astype(np.float32)
    points = np.full_like(scales, middle) if zeros is None else zeros
    parts = (stored.reshape(rows, a_row, block).astype(np.float32) - points[..., None]) * scales[..., None]
    quantised = np.frombuffer(packed_bytes(stored.reshape(-1), bits), np.uint8).reshape(rows, a_row, block * bits // 8)
    values = parts.reshape(rows, -1)[:, :columns]
    return Blocks(bits, block, quantised, scales.reshape(-1), None if zeros is None else zeros.reshape(-1), values)


def dequantised(form: Grouped, count: int) -> np.ndarray:
    """float32 `[count]`: what DequantizeLinear and the addition of the offsets make."""
    rows = form.levels.reshape(form.shape[0] if not form.alone and form.shape else 1, -1).astype(np.float32)
    wide: Any = (lambda each: each.reshape(-1, 1)) if not form.alone else (lambda each: each)
    return (rows * wide(form.scales) + wide(form.offsets)).reshape(-1)[:count]
