"""Coded levels, a stream of rANS words, and back, through the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.level_code import HIGHEST_VALUE, LOWEST_VALUE, CodeError
from .loading import core
from .registration import kernel
from .tensors import empty, guard_tensors


@kernel
def encode_levels(levels, origin, low_bits, frequencies, escape, block_bits):
    guard_tensors("encode_levels", [levels])
    if levels.dtype == torch.int64:  # what is beyond 16 bits stays so, and the core refuses it
        levels = levels.clamp(LOWEST_VALUE - 1, HIGHEST_VALUE + 1)
    levels = levels.to(torch.int32).contiguous()
    if not all(0 <= each < 2**16 for each in frequencies) or not all(
        abs(each) < 2**16 for each in (origin, low_bits, block_bits)
    ):
        raise ValueError("encode_levels: origin, low_bits, frequencies and block_bits must have 16 bits")
    code = origin, low_bits, list(frequencies), escape, block_bits
    problem, words = core.encode_levels(code, levels.data_ptr(), levels.numel(), torch.get_num_threads())
    if problem:
        raise ValueError(f"encode_levels: {problem}")
    return torch.frombuffer(words, dtype=torch.int16) if words else empty([0], torch.int16)  # it refuses no bytes


@kernel
def decode_levels(words: Tensor, count: int) -> Tensor:
    guard_tensors("decode_levels", [words])
    if words.dtype != torch.int16 or not 0 <= count < 2**60:
        raise ValueError(f"decode_levels: expected int16 words and a count, got {words.dtype} and {count}")
    words = words.contiguous()
    levels = empty([count], torch.int32)
    problem = core.decode_levels(words.data_ptr(), words.numel(), count, levels.data_ptr(), torch.get_num_threads())
    if problem:
        raise CodeError(problem)
    return levels
