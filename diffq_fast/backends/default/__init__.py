"""The reference as kernels, registered for every device: what runs where no other backend has a kernel."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..._ops import NAMESPACE, range_dtype
from ...reference import bits, philox
from ...reference import operators as reference

_library = torch.library.Library(NAMESPACE, "IMPL")


def _kernel(function: Callable) -> Callable:
    """Register ``function`` as the default kernel of the operator that it is named after."""
    _library.impl(function.__name__, function, "CompositeExplicitAutograd")
    return function


@_kernel
def draw_key(like: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=like.device).random_(-(2**63), None)


@_kernel
def noise(key: Tensor, stream: int, first: int, count: int, kind: str) -> Tensor:
    z = philox.noise(key, stream, first, count, kind)
    return z.clone() if z.storage_offset() else z  # an operator returns no view into something larger


@_kernel
def weight_range(weights: Sequence[Tensor], group_size: int, per_group: bool) -> tuple[Tensor, Tensor]:
    dtype = range_dtype(weights)
    rows = [reference.weight_range(weight, group_size, per_group).to(dtype) for weight in weights]
    if per_group:
        return torch.cat(rows), rows[0].new_empty((0, 4), dtype=torch.int64)
    found = [reference.extremes(weight, row) for weight, row in zip(weights, rows, strict=True)]
    return torch.cat(rows), torch.cat(found)


@_kernel
def add_noise(weights, logits, key, streams, tally, group_size, min_bits, max_bits, param, kind, per_group, dtype=None):
    noisy = [
        reference.noisy_weight(
            weight,
            logit,
            philox.noise(key, stream, 0, weight.numel(), kind),
            group_size,
            min_bits,
            max_bits,
            param,
            per_group,
            dtype,
        )
        for weight, logit, stream in zip(weights, logits, streams, strict=True)
    ]
    return noisy, *weight_range(weights, group_size, per_group)


@_kernel
def add_noise_backward(
    grads, weights, logits, range, extremes, key, streams, group_size, min_bits, max_bits, param, kind, per_group
):
    bounds = _bounds_of(weights, range, group_size, per_group)
    results = [
        reference.noisy_weight_backward(
            grad,
            weight,
            logit,
            bound,
            philox.noise(key, stream, 0, weight.numel(), kind),
            group_size,
            min_bits,
            max_bits,
            param,
            per_group,
        )
        for grad, weight, logit, bound, stream in zip(grads, weights, logits, bounds, streams, strict=True)
    ]
    grad_weights, grad_logits, nonfinite = zip(*results, strict=True)
    return list(grad_weights), list(grad_logits), torch.stack(nonfinite).to(torch.float32)


def _bounds_of(weights: Sequence[Tensor], range: Tensor, group_size: int, per_group: bool) -> Sequence[Tensor]:
    """The rows of ``range`` that belong to each weight."""
    sizes = [reference.group_count(weight.numel(), group_size) if per_group else 1 for weight in weights]
    return range.split(sizes)


@_kernel
def quantize(weights, widths, range, group_size, per_group):
    bounds = _bounds_of(weights, range, group_size, per_group)
    return [
        reference.quantize(weight, width, bound, group_size)
        for weight, width, bound in zip(weights, widths, bounds, strict=True)
    ]


@_kernel
def dequantize(levels, widths, range, group_size, per_group, dtype):
    bounds = _bounds_of(levels, range, group_size, per_group)
    return [
        reference.dequantize(level, width, bound, group_size, dtype)
        for level, width, bound in zip(levels, widths, bounds, strict=True)
    ]


@_kernel
def fake_quantize(weights, widths, range, group_size, per_group, dtype=None):
    levels = quantize(weights, widths, range, group_size, per_group)
    bounds = _bounds_of(weights, range, group_size, per_group)
    return [
        reference.dequantize(level, width, bound, group_size, dtype or weight.dtype)
        for level, width, bound, weight in zip(levels, widths, bounds, weights, strict=True)
    ]


@_kernel
def widths_from_logits(logits: Tensor, min_bits: float, max_bits: float, param: str, extra_bits: float) -> Tensor:
    return bits.whole_bits_from_logits(logits, min_bits, max_bits, param, extra_bits)


@_kernel
def count_widths(widths: Tensor) -> Tensor:
    return reference.count_widths(widths)


@_kernel
def pack(levels: Tensor, widths: Tensor, group_size: int, word_count: int) -> Tensor:
    return reference.pack(levels, widths, group_size)


@_kernel
def unpack(words: Tensor, widths: Tensor, group_size: int, count: int) -> Tensor:
    return reference.unpack(words, widths, group_size, count)


@_kernel
def quantize_pack(weight, widths, range, group_size, per_group, word_count):
    return reference.pack(reference.quantize(weight, widths, range, group_size), widths, group_size)


@_kernel
def quantize_planes(weight, widths, range, group_size, level_counts):
    levels = reference.quantize(weight, widths, range, group_size)
    return reference.pack_planes_by_width(levels, widths, group_size)


@_kernel
def unpack_dequantize(words, widths, range, group_size, per_group, shape, dtype):
    count = torch.Size(shape).numel()
    levels = reference.unpack(words, widths, group_size, count).view(shape)
    return reference.dequantize(levels, widths, range, group_size, dtype)


@_kernel
def pack_planes(values: Tensor, nbits: int, rows: int, columns: int) -> Tensor:
    return reference.pack_planes(values, nbits, rows, columns)


@_kernel
def pack_planes_seen(values: Tensor, nbits: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return reference.pack_planes(values, nbits, rows, columns), reference.worst_value(values)


@_kernel
def unpack_planes(planes: Tensor, length: int) -> Tensor:
    return reference.unpack_planes(planes, length)


@_kernel
def checksum(data: Tensor) -> Tensor:
    return torch.tensor(zlib.crc32(data.cpu().contiguous().reshape(-1).numpy().data))
