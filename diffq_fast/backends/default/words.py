"""Levels packed into 32-bit words, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference import words as reference
from ...reference.quantize import dequantize, quantize
from .registration import kernel


@kernel
def pack(levels: Tensor, widths: Tensor, group_size: int, word_count: int) -> Tensor:
    return reference.pack(levels, widths, group_size)


@kernel
def unpack(words: Tensor, widths: Tensor, group_size: int, count: int) -> Tensor:
    return reference.unpack(words, widths, group_size, count)


@kernel
def quantize_pack(weight, widths, ranges, group_size, per_group, word_count):
    return reference.pack(quantize(weight, widths, ranges, group_size), widths, group_size)


@kernel
def unpack_dequantize(words, widths, ranges, group_size, per_group, shape, dtype):
    levels = reference.unpack(words, widths, group_size, torch.Size(shape).numel()).view(shape)
    return dequantize(levels, widths, ranges, group_size, dtype)
