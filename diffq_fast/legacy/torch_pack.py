"""diffq's packer in torch operations: levels as bit planes of one rectangle.

The values, padded with zeros to a multiple of S (the bits of the storage type), are seen as [S, length / S]
in row-major order; bit j of the value at [r, c] is bit r of word [j, c]. :mod:`diffq_fast.functional` holds
the packing proper: this is one block of it, as wide as needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import unpack_planes
from .bitpack import check_integers, check_length, checked_planes

__all__ = ["pack", "unpack"]

STORAGE_BITS = {torch.uint8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64}


def pack(x: Tensor, nbits: int = 0, storage_dtype: torch.dtype = torch.int16) -> Tensor:
    """Bit planes ``[nbits, ceil(count / S)]`` of an integer tensor, S = bits of ``storage_dtype``.

    Args:
        x: integers (or bool) of any shape, ``0 <= x < 2**15``, taken in row-major order.
        nbits: planes; 0 means ``ceil(log2(1 + x.max()))``, so none at all when every value is 0.
        storage_dtype: uint8, int16, int32 or int64.

    Raises:
        TypeError: ``x`` is not an integer tensor, or ``storage_dtype`` is none of the four.
        ValueError: a value is negative, at least 2**15, or does not fit ``nbits``; a bad ``nbits``.

    Source: the format of diffq 0.2.4's ``diffq.torch_pack``.

    >>> pack(torch.tensor([1, 2, 3])).shape
    torch.Size([2, 1])
    """
    if storage_dtype not in STORAGE_BITS:
        choices = ", ".join(str(dtype) for dtype in STORAGE_BITS)
        raise TypeError(f"torch_pack.pack: storage_dtype must be one of {choices}, got {storage_dtype}")
    check_integers("torch_pack.pack", x, nbits)
    rows = STORAGE_BITS[storage_dtype]
    columns = -(-x.numel() // rows)
    if not columns:
        return x.new_zeros((nbits, 0), dtype=storage_dtype)
    return checked_planes("torch_pack.pack", x, nbits, rows=rows, columns=columns)[0]


def unpack(packed: Tensor, length: int | None = None) -> Tensor:
    """int16 ``[length]``: the inverse of :func:`pack`; without ``length`` the zero padding comes along.

    Args:
        packed: uint8, int16, int32 or int64 ``[nbits, columns]``.
        length: how many values to give back.

    Raises:
        TypeError: ``packed`` is not two-dimensional or of another dtype.
        ValueError: more than 16 planes, or ``length`` exceeds what ``packed`` holds.
    """
    if packed.dtype not in STORAGE_BITS or packed.dim() != 2:
        raise TypeError(
            f"torch_pack.unpack: packed must be [nbits, columns] of uint8, int16, int32 or int64, "
            f"got {packed.dtype} {list(packed.shape)}"
        )
    capacity = packed.shape[1] * STORAGE_BITS[packed.dtype]
    return unpack_planes(packed[None], check_length("torch_pack.unpack", length, capacity))
