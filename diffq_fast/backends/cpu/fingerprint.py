"""Whether memory of the CPU still holds what it held, see ``csrc/core/runtime/fingerprint.h``."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .loading import core

Piece = tuple[int, int]  # the address and the number of bytes


def piece_of(tensor: Tensor) -> Piece:
    """The memory that a tensor on the CPU lies in, from its first element to its last."""
    if not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


def all_fingerprints(piece: Piece) -> list[int]:
    """What each look at a piece of memory sees: one number for every 64 kB; without the core, one for all."""
    return [_crc(piece)] if core is None else core.all_fingerprints(*piece, torch.get_num_threads())


def fingerprints(pieces: Sequence[Piece], look: int) -> list[int]:
    """What the ``look``-th look at each piece sees; looks are counted round and round."""
    if core is None:
        return [_crc(piece) for piece in pieces]
    return core.fingerprints([address for address, _ in pieces], [count for _, count in pieces], look)


def _crc(piece: Piece) -> int:
    address, count = piece
    return zlib.crc32((ctypes.c_ubyte * count).from_address(address)) if count else 0
