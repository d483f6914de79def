"""Launchers of quantising and packing; meanings and shapes: ``diffq_fast/_ops.py``.

Packing needs to know on the host how many groups have each width: it waits for the device once per width
tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...reference.planes import PLANE_DTYPES, worst_value
from ...reference.sizes import MAX_WIDTH, group_count, stream_words
from .. import default
from .arithmetic import INTERPRETED
from .export_kernels import pack_kernel, requantize_kernel, unpack_kernel
from .launching import TYPES, WARPS
from .plane_kernels import pack_planes_kernel, quantize_planes_kernel, unpack_planes_kernel

TILE = 2048
LANES = 128
PLANE_LANES = 32
EXACT = {"num_warps": WARPS, "enable_fp_fusion": False}
_WIDTHS = tuple(range(1, MAX_WIDTH + 1))
_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def _rows(found: Tensor, counts: Sequence[int], group_size: int, per_group: bool) -> Sequence[Tensor]:
    """The rows of the range that belong to each weight."""
    return found.contiguous().split([group_count(n, group_size) if per_group else 1 for n in counts])


def _requantize(
    source: Tensor, widths: Tensor, found: Tensor, group_size: int, per_group: bool, dtype: torch.dtype
) -> Tensor:
    """Levels of weights, weights of levels, or weights by way of levels, as the dtypes say (int32: levels)."""
    result = torch.empty(source.shape, dtype=dtype, device=source.device)
    count = source.numel()
    if count:
        columns = _requantize_columns(group_size, count)
        requantize_kernel[(-(-count // TILE),)](
            source.contiguous(), widths.to(torch.uint8).contiguous(), found, result, count,
            GROUP=group_size if group_size < count else 0, PER_GROUP=per_group, QUANTIZE=source.dtype != torch.int32,
            DEQUANTIZE=dtype != torch.int32, FUSED=not (INTERPRETED or per_group), ROWS=TILE // columns,
            COLUMNS=columns, **EXACT,
        )  # fmt: skip
    return result


def _requantize_columns(group_size: int, count: int) -> int:
    """How many consecutive elements of a tile certainly have one width and range."""
    if group_size == 0 or group_size >= count:
        return TILE
    return math.gcd(group_size, TILE)  # a power of two


def quantize(weights, widths, range, group_size, per_group):
    if any(weight.dtype not in TYPES for weight in weights):
        return default.quantize(weights, widths, range, group_size, per_group)
    rows = _rows(range, [weight.numel() for weight in weights], group_size, per_group)
    return [
        _requantize(weight, width, row, group_size, per_group, torch.int32)
        for weight, width, row in zip(weights, widths, rows, strict=True)
    ]


def dequantize(levels, widths, range, group_size, per_group, dtype):
    if dtype not in TYPES or any(level.dtype != torch.int32 for level in levels):
        return default.dequantize(levels, widths, range, group_size, per_group, dtype)
    rows = _rows(range, [level.numel() for level in levels], group_size, per_group)
    return [
        _requantize(level, width, row, group_size, per_group, dtype)
        for level, width, row in zip(levels, widths, rows, strict=True)
    ]


def fake_quantize(weights, widths, range, group_size, per_group, dtype=None):
    if any(weight.dtype not in TYPES for weight in weights) or not (dtype is None or dtype in TYPES):
        return default.fake_quantize(weights, widths, range, group_size, per_group, dtype)
    rows = _rows(range, [weight.numel() for weight in weights], group_size, per_group)
    return [
        _requantize(weight, width, row, group_size, per_group, dtype or weight.dtype)
        for weight, width, row in zip(weights, widths, rows, strict=True)
    ]


# -- the native layout ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """The levels of one width: how many, where their words begin, and which groups they are (None: all)."""

    width: int
    count: int
    first_word: int
    order: Tensor | None


_streams: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def streams_of(widths: Tensor, group_size: int, count: int) -> list[Stream]:
    """The streams of a weight, kept for as long as the tensor of its widths lives unchanged."""
    if widths.is_inference():
        return _find_streams(widths, group_size, count)
    asked = widths._version, group_size, count
    if _streams.get(widths, (None, None))[0] != asked:
        _streams[widths] = asked, _find_streams(widths, group_size, count)
    return _streams[widths][1]


def _find_streams(widths: Tensor, group_size: int, count: int) -> list[Stream]:
    size = group_size or count
    if count == 0:
        return []
    numbers = torch.bincount(widths.to(torch.int32), minlength=MAX_WIDTH + 1)
    *groups, last = torch.cat([numbers, widths[-1:].to(torch.int64)]).tolist()
    if groups[0] or len(groups) > MAX_WIDTH + 1:
        raise ValueError(f"pack: widths must be between 1 and {MAX_WIDTH}, got {widths.min()} to {widths.max()}")
    order = torch.argsort(widths, stable=True) if max(groups) < widths.numel() else None
    missing = widths.numel() * size - count
    found, first_group, first_word = [], 0, 0
    for width, number in enumerate(groups):
        levels = number * size - (missing if width == last else 0)
        if number:
            own = None if order is None else order[first_group : first_group + number]
            found.append(Stream(width, levels, first_word, own))
        first_group += number
        first_word += stream_words(levels, width)
    return found


def _checked_streams(who: str, widths: Tensor, group_size: int, count: int, word_count: int) -> list[Stream]:
    groups = group_count(count, group_size)
    if widths.numel() != groups:
        raise ValueError(f"{who}: widths: expected {groups} values, one per group, got {widths.numel()}")
    streams = streams_of(widths, group_size, count)
    needed = sum(stream_words(stream.count, stream.width) for stream in streams)
    if needed != word_count:
        raise ValueError(f"{who}: widths need exactly {needed} words, got {word_count}")
    return streams


def _pack(
    source: Tensor, streams: Sequence[Stream], found: Tensor | None, per_group: bool, size: int, words: Tensor
) -> Tensor:
    for stream in streams:
        pack_kernel[(-(-stream.count // (32 * LANES)),)](
            source, found, stream.order, words[stream.first_word :], stream.count,
            WIDTH=stream.width, GROUP=size, PER_GROUP=per_group, ORDERED=stream.order is None,
            QUANTIZE=found is not None, FUSED=not INTERPRETED, LANES=LANES, **EXACT,
        )  # fmt: skip
    return words


def _unpack(
    words: Tensor, streams: Sequence[Stream], found: Tensor | None, per_group: bool, size: int, result: Tensor
) -> Tensor:
    for stream in streams:
        unpack_kernel[(-(-stream.count // (32 * LANES)),)](
            words[stream.first_word :], found, stream.order, result, stream.count,
            WIDTH=stream.width, GROUP=size, PER_GROUP=per_group, ORDERED=stream.order is None,
            DEQUANTIZE=found is not None, LANES=LANES, **EXACT,
        )  # fmt: skip
    return result


def pack(levels: Tensor, widths: Tensor, group_size: int, word_count: int) -> Tensor:
    count = levels.numel()
    streams = _checked_streams("pack", widths, group_size, count, word_count)
    words = torch.empty(word_count, dtype=torch.int32, device=levels.device)
    return _pack(levels.to(torch.int32).contiguous(), streams, None, False, group_size or count, words)


def unpack(words: Tensor, widths: Tensor, group_size: int, count: int) -> Tensor:
    streams = _checked_streams("unpack", widths, group_size, count, words.numel())
    levels = torch.empty(count, dtype=torch.int32, device=words.device)
    return _unpack(words.contiguous(), streams, None, False, group_size or count, levels)


def quantize_pack(weight, widths, range, group_size, per_group, word_count):
    if weight.dtype not in TYPES:
        return default.quantize_pack(weight, widths, range, group_size, per_group, word_count)
    count = weight.numel()
    streams = _checked_streams("quantize_pack", widths, group_size, count, word_count)
    words = torch.empty(word_count, dtype=torch.int32, device=weight.device)
    return _pack(weight.contiguous(), streams, range.contiguous(), per_group, group_size or count, words)


def unpack_dequantize(words, widths, range, group_size, per_group, shape, dtype):
    if dtype not in TYPES:
        return default.unpack_dequantize(words, widths, range, group_size, per_group, shape, dtype)
    weight = torch.empty(shape, dtype=dtype, device=words.device)
    count = weight.numel()
    streams = _checked_streams("unpack_dequantize", widths, group_size, count, words.numel())
    return _unpack(words.contiguous(), streams, range.contiguous(), per_group, group_size or count, weight)


# -- diffq's bit planes --------------------------------------------------------------------------------------


def pack_planes(values: Tensor, nbits: int, rows: int, columns: int) -> Tensor:
    values = (values if values.dtype in _INTEGERS else values.to(torch.int64)).contiguous()
    block = rows * columns
    blocks = -(-values.numel() // block) if block else 0
    planes = torch.empty((blocks, nbits, columns), dtype=PLANE_DTYPES[rows], device=values.device)
    cells = blocks * columns
    if planes.numel():
        pack_planes_kernel[(-(-cells // PLANE_LANES),)](
            values, planes, values.numel(), cells, columns, NBITS=nbits,
            PLANES=triton.next_power_of_2(nbits), ROWS=rows, LANES=PLANE_LANES, num_warps=WARPS,
        )  # fmt: skip
    return planes


def pack_planes_seen(values: Tensor, nbits: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return pack_planes(values, nbits, rows, columns), worst_value(values)


def quantize_planes(weight, widths, range, group_size, level_counts):
    if weight.dtype not in TYPES:
        return default.quantize_planes(weight, widths, range, group_size, level_counts)
    count = weight.numel()
    streams = {stream.width: stream for stream in streams_of(widths, group_size, count)}
    found = [streams[width].count if width in streams else 0 for width in _WIDTHS]
    if found != list(level_counts):
        raise ValueError(
            f"quantize_planes: expected level_counts, how many levels have 1, 2 … 16 bits, got {list(level_counts)}"
        )
    weight, range = weight.contiguous(), range.contiguous()
    planes = []
    for width, number in zip(_WIDTHS, found, strict=True):
        cells = -(-number // 2048) * 32
        planes.append(torch.empty((cells // 32, width, 32), dtype=torch.int64, device=weight.device))
        if number:
            order = streams[width].order
            quantize_planes_kernel[(-(-cells // PLANE_LANES),)](
                weight, range, order, planes[-1], number, cells, WIDTH=width, PLANES=triton.next_power_of_2(width),
                GROUP=group_size or count, ORDERED=order is None, LANES=PLANE_LANES, **EXACT,
            )  # fmt: skip
    return planes


def unpack_planes(planes: Tensor, length: int) -> Tensor:
    blocks, nbits, columns = planes.shape
    rows = planes.element_size() * 8
    length = min(length, blocks * rows * columns)
    values = torch.empty(length, dtype=torch.int16, device=planes.device)
    if length:
        unpack_planes_kernel[(-(-length // TILE),)](
            planes.contiguous(), values, length, columns, nbits, ROWS=rows, TILE=TILE, num_warps=WARPS
        )
    return values
