"""Coded levels: a stream of rANS words, and back."""

from __future__ import annotations

from torch import Tensor

from ...reference import coding as reference
from ...reference.level_code import LevelCode, code_problem
from .registration import kernel


@kernel
def encode_levels(levels, origin, low_bits, frequencies, escape, block_bits):
    code = LevelCode(origin, low_bits, tuple(frequencies), escape, block_bits)
    problem = code_problem(code, len(frequencies) or 1)
    if problem:
        raise ValueError(f"encode_levels: {problem}")
    return reference.encode_levels(levels, code)


@kernel
def decode_levels(words: Tensor, count: int) -> Tensor:
    return reference.decode_levels(words, count)
