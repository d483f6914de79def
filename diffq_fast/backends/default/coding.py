"""Coded levels: a stream of rANS words, and back."""

from __future__ import annotations

from torch import Tensor

from ...reference import coding as reference
from ...reference.level_code import LevelCode
from .registration import kernel


@kernel
def encode_levels(levels, origin, low_bits, frequencies, escape, block_bits):
    return reference.encode_levels(levels, LevelCode(origin, low_bits, tuple(frequencies), escape, block_bits))


@kernel
def decode_levels(words: Tensor, count: int) -> Tensor:
    return reference.decode_levels(words, count)
