"""Launchers of packing into words and back; meanings and shapes: ``diffq_fast/_ops.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import default
from .arithmetic import INTERPRETED
from .launching import TYPES, launch
from .widths import LevelsOfWidth, checked_levels
from .words_kernels import WordsConfig, pack_kernel, unpack_kernel

LANES = 128


def pack(levels: Tensor, widths: Tensor, group_size: int, word_count: int) -> Tensor:
    count = levels.numel()
    by_width = checked_levels("pack", widths, group_size, count, word_count)
    words = torch.empty(word_count, dtype=torch.int32, device=levels.device)
    return _pack(levels.to(torch.int32).contiguous(), by_width, None, _config(group_size, False), words)


def unpack(words: Tensor, widths: Tensor, group_size: int, count: int) -> Tensor:
    by_width = checked_levels("unpack", widths, group_size, count, words.numel())
    levels = torch.empty(count, dtype=torch.int32, device=words.device)
    return _unpack(words.contiguous(), by_width, None, _config(group_size, False), levels)


def quantize_pack(weight, widths, ranges, group_size, per_group, word_count):
    if weight.dtype not in TYPES:
        return default.quantize_pack(weight, widths, ranges, group_size, per_group, word_count)
    count = weight.numel()
    by_width = checked_levels("quantize_pack", widths, group_size, count, word_count)
    words = torch.empty(word_count, dtype=torch.int32, device=weight.device)
    return _pack(weight.contiguous(), by_width, ranges.contiguous(), _config(group_size, per_group), words)


def unpack_dequantize(words, widths, ranges, group_size, per_group, shape, dtype):
    if dtype not in TYPES:
        return default.unpack_dequantize(words, widths, ranges, group_size, per_group, shape, dtype)
    weight = torch.empty(shape, dtype=dtype, device=words.device)
    count = weight.numel()
    by_width = checked_levels("unpack_dequantize", widths, group_size, count, words.numel())
    return _unpack(words.contiguous(), by_width, ranges.contiguous(), _config(group_size, per_group), weight)


def _config(group_size: int, per_group: bool) -> WordsConfig:
    """Of all of a weight's widths together; :func:`_launch` fills in what is one width's own. One group (0) has one
    range."""
    return WordsConfig(0, group_size, per_group and group_size != 0, False, False, not INTERPRETED, LANES)


def _pack(
    source: Tensor, by_width: Sequence[LevelsOfWidth], ranges: Tensor | None, config: WordsConfig, words: Tensor
) -> Tensor:
    for levels in by_width:
        _launch(pack_kernel, source, levels, ranges, words[levels.word_begin :], config)
    return words


def _unpack(
    words: Tensor, by_width: Sequence[LevelsOfWidth], ranges: Tensor | None, config: WordsConfig, result: Tensor
) -> Tensor:
    for levels in by_width:
        _launch(unpack_kernel, words[levels.word_begin :], levels, ranges, result, config)
    return result


def _launch(
    kernel: Any, source: Tensor, levels: LevelsOfWidth, ranges: Tensor | None, result: Tensor, config: WordsConfig
) -> None:
    ordered = levels.order is None
    group_size = config.group_size if config.per_group or not ordered else 1  # else none matters: one kernel for all
    config = config._replace(
        width=levels.width, group_size=group_size, ordered=ordered, float_weight=ranges is not None
    )
    programs = -(-levels.number // (32 * LANES))
    arguments = source, ranges, levels.order, result, levels.number
    launch(kernel, programs, *arguments, CONFIG=config, enable_fp_fusion=False)
