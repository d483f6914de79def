"""The operators on the CPU through the compiled core. Schemas and meanings: ``diffq_fast/_ops.py``."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..._ops import NAMESPACE
from ...reference import PLANE_DTYPES, group_count
from .. import default
from . import widths as width_steps
from .loading import core

_library = torch.library.Library(NAMESPACE, "IMPL")

# Codes of csrc/core: enum DType, NoiseKind, Param.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_KINDS = {"uniform": 0, "gaussian": 1}
_PARAMS = {"bits": 0, "noise": 1}
_BLOCK_BYTES = 1 << 20  # smaller results come from torch's allocator, which reuses such memory itself
_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def _kernel(function: Callable) -> Callable:
    """Register ``function`` as the CPU kernel of the operator that it is named after."""
    _library.impl(function.__name__, function, "CPU")
    return function


def _supported(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.dtype in _DTYPES for tensor in tensors)


def _contiguous(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The tensors in row-major order; the caller keeps the list while the core reads from its addresses."""
    return [(tensor if dtype is None else tensor.to(dtype)).contiguous() for tensor in tensors]


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _lists(weights: Sequence[Tensor]) -> tuple[list[int], list[int], list[int]]:
    """Addresses, counts and dtype codes."""
    return _addresses(weights), [w.numel() for w in weights], [_DTYPES[w.dtype] for w in weights]


def _noise(weights: Sequence[Tensor], logits: Sequence[Tensor], key: Tensor, streams: Sequence[int], options: tuple):
    """What add_noise and its backward have in common, as the core takes it."""
    return _lists(weights), _addresses(logits), key.data_ptr(), streams, options


def _empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A row-major tensor; large ones from the core's blocks, which the system need not clear each time."""
    made = torch.empty(0, dtype=dtype)
    size = math.prod(shape) * made.element_size()
    if size < _BLOCK_BYTES:
        return torch.empty(shape, dtype=dtype)
    if size >= 2**62:
        raise MemoryError(f"diffq_fast: a result of {list(shape)} {dtype} needs {size:,} bytes")
    block = torch.frombuffer(core.Block(size), dtype=torch.uint8)  # keeps the block alive
    strides = [math.prod(shape[axis + 1 :]) for axis in builtins.range(len(shape))]
    return made.set_(block.untyped_storage(), 0, tuple(shape), tuple(strides))  # no view of another tensor


def _empty_like(weights: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Row-major tensors of the weights' shapes, and of their dtypes where none is given."""
    return [_empty(weight.shape, dtype or weight.dtype) for weight in weights]


def _empty_range(weights: Sequence[Tensor], group_size: int, per_group: bool) -> tuple[Tensor, Tensor]:
    rows = sum(group_count(w.numel(), group_size) for w in weights) if per_group else len(weights)
    return torch.empty((rows, 2)), torch.empty((0 if per_group else rows, 4), dtype=torch.int64)


def _check_groups(who: str, argument: str, values: Sequence[Tensor], counts: Sequence[int], group_size: int) -> None:
    """Guards the core's reads: one value per group."""
    for index, (value, count) in enumerate(zip(values, counts, strict=True)):
        groups = group_count(count, group_size)
        if value.numel() != groups:
            raise ValueError(
                f"{who}: {argument}[{index}]: expected {groups} values, one per group of the weight's "
                f"{count} elements, got {value.numel()}"
            )


def _check_rows(who: str, found: Tensor, counts: Sequence[int], group_size: int, per_group: bool) -> None:
    """Guards the core's reads: one row of the range per weight or per group."""
    rows = sum(group_count(count, group_size) for count in counts) if per_group else len(counts)
    if found.dtype != torch.float32 or tuple(found.shape) != (rows, 2):
        raise ValueError(f"{who}: range: expected float32 [{rows}, 2], got {found.dtype} {list(found.shape)}")


def _check_sizes(who: str, argument: str, values: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    if [value.numel() for value in values] != [weight.numel() for weight in weights]:
        raise ValueError(f"{who}: {argument}: expected as many elements as the weights have")


def _check_key(who: str, key: Tensor, streams: Sequence[int], weights: int) -> None:
    """Guards the core's reads: the key's 64 bits, and one stream per weight."""
    if key.dtype != torch.int64 or key.numel() != 1 or len(streams) != weights:
        found = f"{key.dtype} {list(key.shape)} and {len(streams)} streams"
        raise ValueError(f"{who}: expected one int64 key and {weights} streams, got {found}")


def _check_extremes(who: str, extremes: Tensor, weights: int) -> None:
    if extremes.dtype != torch.int64 or tuple(extremes.shape) != (weights, 4):
        found = f"{extremes.dtype} {list(extremes.shape)}"
        raise ValueError(f"{who}: extremes: expected int64 [{weights}, 4], got {found}")


def _check_words(who: str, words: Tensor) -> None:
    if words.element_size() != 4:
        raise ValueError(f"{who}: words: expected 32 bits each, got {words.dtype}")


@_kernel
def noise(key: Tensor, stream: int, first: int, count: int, kind: str) -> Tensor:
    _check_key("noise", key, [stream], 1)
    if first < 0 or count < 0 or first + count >= 2**63:
        raise ValueError(f"noise: first and count must not be negative nor reach 2**63, got {first} and {count}")
    z = _empty([count])
    core.noise(key.data_ptr(), stream, first, count, _KINDS[kind], z.data_ptr(), torch.get_num_threads())
    return z


@_kernel
def weight_range(weights: Sequence[Tensor], group_size: int, per_group: bool) -> tuple[Tensor, Tensor]:
    if not _supported(weights):
        return default.weight_range(weights, group_size, per_group)
    weights = _contiguous(weights)
    found, extremes = _empty_range(weights, group_size, per_group)
    core.weight_range(
        _lists(weights), group_size, per_group, found.data_ptr(), extremes.data_ptr(), torch.get_num_threads()
    )
    return found, extremes


@_kernel
def add_noise(weights, logits, key, streams, tally, group_size, min_bits, max_bits, param, kind, per_group, dtype=None):
    options = group_size, min_bits, max_bits, param, kind, per_group
    if not _supported(weights) or not _supported(logits) or not (dtype is None or dtype in _DTYPES):
        return default.add_noise(weights, logits, key, streams, tally, *options, dtype)
    _check_key("add_noise", key, streams, len(weights))
    _check_groups("add_noise", "logits", logits, [weight.numel() for weight in weights], group_size)
    weights, logits = _contiguous(weights), _contiguous(logits, torch.float32)
    noisy = _empty_like(weights, dtype)
    found, extremes = _empty_range(weights, group_size, per_group)
    core.add_noise(
        _noise(
            weights, logits, key, streams, (group_size, min_bits, max_bits, _PARAMS[param], _KINDS[kind], per_group)
        ),
        (found.data_ptr(), extremes.data_ptr()),
        _lists(noisy),
        torch.get_num_threads(),
    )
    return noisy, found, extremes


@_kernel
def add_noise_backward(
    grads,
    weights,
    logits,
    range,
    extremes,
    key,
    streams,
    group_size,
    min_bits,
    max_bits,
    param,
    kind,
    per_group,
):
    if not (_supported(grads) and _supported(weights) and _supported(logits)):
        options = group_size, min_bits, max_bits, param, kind, per_group
        return default.add_noise_backward(grads, weights, logits, range, extremes, key, streams, *options)
    counts = [weight.numel() for weight in weights]
    _check_key("add_noise_backward", key, streams, len(weights))
    _check_extremes("add_noise_backward", extremes, 0 if per_group else len(weights))
    _check_sizes("add_noise_backward", "grads", grads, weights)
    _check_groups("add_noise_backward", "logits", logits, counts, group_size)
    _check_rows("add_noise_backward", range, counts, group_size, per_group)
    shapes = [logit.shape for logit in logits]
    grads, weights, logits = _contiguous(grads), _contiguous(weights), _contiguous(logits, torch.float32)
    range, extremes = range.contiguous(), extremes.contiguous()
    grad_weights = _empty_like(weights)
    grad_logits = [_empty(shape) for shape in shapes]
    nonfinite = torch.empty(len(weights))
    core.add_noise_backward(
        _noise(
            weights, logits, key, streams, (group_size, min_bits, max_bits, _PARAMS[param], _KINDS[kind], per_group)
        ),
        (range.data_ptr(), extremes.data_ptr()),
        _lists(grads),
        (_addresses(grad_weights), _addresses(grad_logits), nonfinite.data_ptr()),
        torch.get_num_threads(),
    )
    return grad_weights, grad_logits, nonfinite


@_kernel
def quantize(weights, widths, range, group_size, per_group):
    if not _supported(weights):
        return default.quantize(weights, widths, range, group_size, per_group)
    counts = [weight.numel() for weight in weights]
    _check_groups("quantize", "widths", widths, counts, group_size)
    _check_rows("quantize", range, counts, group_size, per_group)
    weights, widths, range = _contiguous(weights), _contiguous(widths, torch.uint8), range.contiguous()
    levels = [_empty(weight.shape, torch.int32) for weight in weights]
    core.quantize(
        _lists(weights),
        _addresses(widths),
        range.data_ptr(),
        group_size,
        per_group,
        _addresses(levels),
        torch.get_num_threads(),
    )
    return levels


@_kernel
def dequantize(levels, widths, range, group_size, per_group, dtype):
    if dtype not in _DTYPES or any(level.dtype != torch.int32 for level in levels):
        return default.dequantize(levels, widths, range, group_size, per_group, dtype)
    counts = [level.numel() for level in levels]
    _check_groups("dequantize", "widths", widths, counts, group_size)
    _check_rows("dequantize", range, counts, group_size, per_group)
    levels, widths, range = _contiguous(levels), _contiguous(widths, torch.uint8), range.contiguous()
    weights = [_empty(level.shape, dtype) for level in levels]
    core.dequantize(
        _addresses(levels),
        _addresses(widths),
        range.data_ptr(),
        group_size,
        per_group,
        _lists(weights),
        torch.get_num_threads(),
    )
    return weights


@_kernel
def fake_quantize(weights, widths, range, group_size, per_group, dtype=None):
    if not _supported(weights) or not (dtype is None or dtype in _DTYPES):
        return default.fake_quantize(weights, widths, range, group_size, per_group, dtype)
    counts = [weight.numel() for weight in weights]
    _check_groups("fake_quantize", "widths", widths, counts, group_size)
    _check_rows("fake_quantize", range, counts, group_size, per_group)
    weights, widths, range = _contiguous(weights), _contiguous(widths, torch.uint8), range.contiguous()
    results = _empty_like(weights, dtype)
    core.fake_quantize(
        _lists(weights),
        _addresses(widths),
        range.data_ptr(),
        group_size,
        per_group,
        _lists(results),
        torch.get_num_threads(),
    )
    return results


def _packing(who: str, widths: Tensor, count: int, group_size: int, words: int) -> tuple[int, int, int, int]:
    _check_groups(who, "widths", [widths], [count], group_size)
    return widths.data_ptr(), count, group_size, words


def _require(done: bool, who: str, word_count: int) -> None:
    if not done:
        raise ValueError(
            f"{who}: widths must be between 1 and 16 and need exactly word_count words, got word_count={word_count}"
        )


@_kernel
def widths_from_logits(logits: Tensor, min_bits: float, max_bits: float, param: str, extra_bits: float) -> Tensor:
    return width_steps.widths_from_logits(logits, min_bits, max_bits, param, extra_bits)


@_kernel
def count_widths(widths: Tensor) -> Tensor:
    if widths.dtype != torch.uint8:
        return default.count_widths(widths)
    widths, counts = widths.contiguous(), torch.empty(17, dtype=torch.int64)
    core.count_widths(widths.data_ptr(), widths.numel(), counts.data_ptr(), torch.get_num_threads())
    return counts


@_kernel
def pack(levels: Tensor, widths: Tensor, group_size: int, word_count: int) -> Tensor:
    levels, widths = levels.to(torch.int32).contiguous(), widths.to(torch.uint8).contiguous()
    packing = _packing("pack", widths, levels.numel(), group_size, word_count)
    words = _empty([word_count], torch.int32)
    _require(core.pack(packing, levels.data_ptr(), words.data_ptr(), torch.get_num_threads()), "pack", word_count)
    return words


@_kernel
def unpack(words: Tensor, widths: Tensor, group_size: int, count: int) -> Tensor:
    _check_words("unpack", words)
    words, widths = words.contiguous(), widths.to(torch.uint8).contiguous()
    packing = _packing("unpack", widths, count, group_size, words.numel())
    levels = _empty([count], torch.int32)
    done = core.unpack(packing, words.data_ptr(), levels.data_ptr(), torch.get_num_threads())
    _require(done, "unpack", words.numel())
    return levels


@_kernel
def quantize_pack(weight, widths, range, group_size, per_group, word_count):
    if not _supported([weight]):
        return default.quantize_pack(weight, widths, range, group_size, per_group, word_count)
    _check_rows("quantize_pack", range, [weight.numel()], group_size, per_group)
    weight, widths, range = weight.contiguous(), widths.to(torch.uint8).contiguous(), range.contiguous()
    packing = _packing("quantize_pack", widths, weight.numel(), group_size, word_count)
    words = _empty([word_count], torch.int32)
    done = core.quantize_pack(
        packing,
        (weight.data_ptr(), _DTYPES[weight.dtype]),
        range.data_ptr(),
        per_group,
        words.data_ptr(),
        torch.get_num_threads(),
    )
    _require(done, "quantize_pack", word_count)
    return words


@_kernel
def quantize_planes(weight, widths, range, group_size, level_counts):
    if not _supported([weight]):
        return default.quantize_planes(weight, widths, range, group_size, level_counts)
    _check_rows("quantize_planes", range, [weight.numel()], group_size, False)
    weight, widths, range = weight.contiguous(), widths.to(torch.uint8).contiguous(), range.contiguous()
    shapes = [(-(-max(count, 0) // 2048), width, 32) for width, count in enumerate(level_counts, 1)]
    planes = [_empty(shape, torch.int64) for shape in shapes]
    done = len(planes) == 16 and core.quantize_planes(
        _packing("quantize_planes", widths, weight.numel(), group_size, 0),
        (weight.data_ptr(), _DTYPES[weight.dtype]),
        range.data_ptr(),
        level_counts,
        _addresses(planes),
        torch.get_num_threads(),
    )
    if not done:
        raise ValueError(
            f"quantize_planes: expected level_counts, how many levels have 1, 2 … 16 bits, got {list(level_counts)}"
        )
    return planes


@_kernel
def unpack_dequantize(words, widths, range, group_size, per_group, shape, dtype):
    if dtype not in _DTYPES:
        return default.unpack_dequantize(words, widths, range, group_size, per_group, shape, dtype)
    _check_words("unpack_dequantize", words)
    weight = _empty(shape, dtype)
    _check_rows("unpack_dequantize", range, [weight.numel()], group_size, per_group)
    words, widths, range = words.contiguous(), widths.to(torch.uint8).contiguous(), range.contiguous()
    packing = _packing("unpack_dequantize", widths, weight.numel(), group_size, words.numel())
    done = core.unpack_dequantize(
        packing,
        words.data_ptr(),
        range.data_ptr(),
        per_group,
        (weight.data_ptr(), _DTYPES[dtype]),
        torch.get_num_threads(),
    )
    _require(done, "unpack_dequantize", words.numel())
    return weight


def _pack_planes(values: Tensor, nbits: int, rows: int, columns: int) -> tuple[Tensor, int]:
    """The planes, and all values joined by "or", as 64 bits without sign."""
    narrow = values.dtype in _INTEGERS and (nbits <= 16 or values.dtype != torch.uint8)  # see csrc/core/pack/planes.h
    values = (values if narrow else values.to(torch.int64)).contiguous()
    block = rows * columns
    blocks = -(-values.numel() // block) if block else 0
    words = _empty((blocks, nbits, columns), PLANE_DTYPES[rows])
    seen = core.pack_planes(
        (values.numel(), nbits, rows, columns),
        values.data_ptr(),
        values.element_size(),
        words.data_ptr(),
        torch.get_num_threads(),
    )
    return words, seen


@_kernel
def pack_planes(values: Tensor, nbits: int, rows: int, columns: int) -> Tensor:
    return _pack_planes(values, nbits, rows, columns)[0]


@_kernel
def pack_planes_seen(values: Tensor, nbits: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    planes, seen = _pack_planes(values, nbits, rows, columns)
    return planes, torch.tensor(seen - 2**64 if seen >= 2**63 else seen)


@_kernel
def unpack_planes(planes: Tensor, length: int) -> Tensor:
    blocks, nbits, columns = planes.shape
    rows = planes.element_size() * 8
    planes = planes.contiguous()
    length = min(length, blocks * rows * columns)
    values = _empty([length], torch.int16)
    shape = length, nbits, rows, columns
    core.unpack_planes(shape, planes.data_ptr(), values.data_ptr(), torch.get_num_threads())
    return values
