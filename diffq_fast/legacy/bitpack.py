"""diffq's packer for the CPU: levels as bit planes in 64-bit words, blocks of 64 × ``block_size`` values.

In block k the value at position 32·r + i (r < 64, i < 32, for ``block_size`` 32) puts its bit j into bit r of
word [k, j, i]::

    position          0   1  …  31 | 32  33 …  63 | …            row r of 64 holds 32 values
    word [k, j, 0]    bit 0        | bit 1        | … bit 63     bit j of the values 0, 32, 64 …

A tail is padded with zeros to a whole block. :mod:`diffq_fast.functional` holds the packing proper.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from ..functional import pack_planes, unpack_planes
from ..reference.sizes import MAX_WIDTH

__all__ = ["pack", "unpack"]

MAX_LEVEL = 2**15 - 1  # what fits the int16 that unpack gives back
ROWS = 64  # bits of a word
_PACKED_AS_THEY_ARE = (torch.uint8, torch.int16, torch.int32, torch.int64)


def check_integers(who: str, x: Tensor, nbits: int) -> None:
    """Refuse what cannot be levels, whatever its values."""
    if x.is_floating_point() or x.is_complex():
        raise TypeError(f"{who}: x must be an integer tensor, got {x.dtype}")
    if not 0 <= nbits <= MAX_WIDTH:
        raise ValueError(
            f"{who}: nbits must be between 0 and {MAX_WIDTH}, 0 for as few as the values need, got {nbits}"
        )
    if x.is_meta:
        raise ValueError(f"{who}: x must hold values, got a meta tensor")


def _check_values(who: str, x: Tensor, nbits: int) -> tuple[int, tuple[int, int]]:
    """How many planes to write (``nbits``, or for 0 as many as ``x`` needs), and the smallest and the largest value.

    Refuses what no packer can hold.
    """
    if not x.numel():
        return nbits, (0, 0)
    lowest, highest = (int(limit) for limit in x.aminmax())
    if lowest < 0 or highest > MAX_LEVEL:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{who}: x must hold values from 0 to {MAX_LEVEL}, found {wrong}")
    if nbits and highest >= 2**nbits:
        raise ValueError(f"{who}: x must hold values from 0 to {2**nbits - 1} for nbits={nbits}, found {highest}")
    return nbits or highest.bit_length(), (lowest, highest)


def checked_planes(who: str, x: Tensor, nbits: int, *, rows: int, columns: int) -> Tensor:
    """The planes of ``x``, ``[blocks, nbits, columns]``; ``nbits`` 0: as many as its values need.

    Where ``nbits`` is given, the values are checked as they are packed, and read once more only to name a wrong one.
    """
    check_integers(who, x, nbits)
    as_it_is = x.dtype in _PACKED_AS_THEY_ARE
    if 0 < nbits <= MAX_LEVEL.bit_length() and x.numel() and as_it_is:
        with suppress(ValueError):  # its text does not speak of x
            return pack_planes(x, nbits, rows=rows, columns=columns)
    width, limits = _check_values(who, x, nbits)
    return pack_planes(x if as_it_is else x.to(torch.int16), width, rows=rows, columns=columns, limits=limits)


def check_length(who: str, length: int | None, capacity: int) -> int:
    """The number of values to give back: ``length``, or all that the planes hold."""
    if length is None:
        return capacity
    if not 0 <= length <= capacity:
        raise ValueError(f"{who}: length must be between 0 and {capacity}, what packed holds, got {length}")
    return length


def pack(x: Tensor, nbits: int = 0, block_size: int = 32) -> Tensor:
    """Bit planes int64 ``[blocks, nbits, block_size]`` of an integer tensor.

    Args:
        x: integers (or bool) of any shape, ``0 <= x < 2**15``, taken in row-major order.
        nbits: planes; 0 means ``ceil(log2(1 + x.max()))``, so none at all when every value is 0.
        block_size: values per row of a block.

    Raises:
        TypeError: ``x`` is not an integer tensor.
        ValueError: a value is negative, at least 2**15, or does not fit ``nbits``; bad ``nbits``,
        ``block_size``.

    Source: the format of diffq 0.2.4's ``diffq.bitpack``.

    >>> pack(torch.tensor([1, 2, 3])).shape
    torch.Size([1, 2, 32])
    """
    if block_size < 1:
        raise ValueError(f"bitpack.pack: block_size must be positive, got {block_size}")
    return checked_planes("bitpack.pack", x, nbits, rows=ROWS, columns=block_size)


def unpack(packed: Tensor, length: int | None = None) -> Tensor:
    """int16 ``[length]``: the inverse of :func:`pack`; without ``length`` the zero padding comes along.

    Args:
        packed: int64 ``[blocks, nbits, block_size]``.
        length: how many values to give back.

    Raises:
        TypeError: ``packed`` is not three-dimensional int64.
        ValueError: more than 16 planes, or ``length`` exceeds what ``packed`` holds.
    """
    if packed.dtype != torch.int64 or packed.dim() != 3:
        raise TypeError(
            f"bitpack.unpack: packed must be int64 [blocks, nbits, block_size], got {packed.dtype} {list(packed.shape)}"
        )
    capacity = packed.shape[0] * packed.shape[2] * ROWS
    return unpack_planes(packed, check_length("bitpack.unpack", length, capacity))
