"""Levels packed into 32-bit words, and back, through the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import default
from .loading import core
from .registration import kernel
from .tensors import DTYPES, empty, guard_quantised, guard_ranges, guard_tensors, packing_of, refuse_words, supported


@kernel
def pack(levels: Tensor, widths: Tensor, group_size: int, word_count: int) -> Tensor:
    guard_tensors("pack", [levels])
    levels, widths = levels.to(torch.int32).contiguous(), widths.to(torch.uint8).contiguous()
    packing = packing_of("pack", widths, levels.numel(), group_size, word_count)
    words = empty([word_count], torch.int32)
    if not core.pack(packing, levels.data_ptr(), words.data_ptr(), torch.get_num_threads()):
        raise refuse_words("pack", word_count)
    return words


@kernel
def unpack(words: Tensor, widths: Tensor, group_size: int, count: int) -> Tensor:
    words, widths = _flat_words("unpack", words), widths.to(torch.uint8).contiguous()
    packing = packing_of("unpack", widths, count, group_size, words.numel())
    levels = empty([count], torch.int32)
    if not core.unpack(packing, words.data_ptr(), levels.data_ptr(), torch.get_num_threads()):
        raise refuse_words("unpack", words.numel())
    return levels


@kernel
def quantize_pack(weight, widths, ranges, group_size, per_group, word_count):
    tensors = guard_quantised("quantize_pack", [weight], [widths], ranges, group_size, per_group)
    if not supported([weight]):
        return default.quantize_pack(weight, widths, ranges, group_size, per_group, word_count)
    (weight,), (widths,), ranges = tensors
    packing = packing_of("quantize_pack", widths, weight.numel(), group_size, word_count)
    words = empty([word_count], torch.int32)
    source = (weight.data_ptr(), DTYPES[weight.dtype]), ranges.data_ptr(), per_group
    if not core.quantize_pack(packing, *source, words.data_ptr(), torch.get_num_threads()):
        raise refuse_words("quantize_pack", word_count)
    return words


@kernel
def unpack_dequantize(words, widths, ranges, group_size, per_group, shape, dtype):
    who = "unpack_dequantize"
    if min(shape, default=0) < 0:
        raise ValueError(f"{who}: sizes of shape must not be negative, got {list(shape)}")
    if dtype not in DTYPES:
        return default.unpack_dequantize(words, widths, ranges, group_size, per_group, shape, dtype)
    words, widths = _flat_words(who, words), widths.to(torch.uint8).contiguous()
    packing = packing_of(who, widths, torch.Size(shape).numel(), group_size, words.numel())
    weight = empty(shape, dtype)
    guard_tensors(who, [ranges])
    guard_ranges(who, ranges, [weight], group_size, per_group)
    ranges = ranges.contiguous()
    target = weight.data_ptr(), DTYPES[dtype]
    if not core.unpack_dequantize(
        packing, words.data_ptr(), ranges.data_ptr(), per_group, target, torch.get_num_threads()
    ):
        raise refuse_words(who, words.numel())
    return weight


def _flat_words(who: str, words: Tensor) -> Tensor:
    guard_tensors(who, [words])
    if words.element_size() != 4:
        raise ValueError(f"{who}: words: expected 32 bits each, got {words.dtype}")
    return words.contiguous()
