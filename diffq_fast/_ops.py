"""The operators ``torch.ops.diffq_fast.*``: schemas, shape rules (fake kernels) and autograd formulas; no arithmetic.

Every operator is functional, takes and returns lists of weights where a training step needs it, and is deterministic
given its arguments: randomness enters only as ``key``. So recomputation, compilation and graph capture are safe.
Conventions: ``group_size`` 0 means one group; ``per_group`` is ``range_scope="group"``; ``kind`` is "uniform" or
"gaussian"; a range is ``[weights, 2]`` or, per group, ``[groups of all weights, 2]``, each row (lo, hi).
``seen`` (int64, 0-dim) is from 0 to ``2**nbits - 1`` exactly when every value is; for ``nbits`` > 0.
Noisy and fake quantised weights have ``dtype`` (None: each its weight's); so have the gradients of noisy weights, while
those of weights have the weights'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference.operators import PLANE_DTYPES, group_count

NAMESPACE = "diffq_fast"
_library = torch.library.Library(NAMESPACE, "DEF")

_SCHEMAS = """
noise(Tensor key, int stream, int first, int count, str kind) -> Tensor
weight_range(Tensor[] weights, int group_size, bool per_group) -> (Tensor range, Tensor extremes)
add_noise(Tensor[] weights, Tensor[] logits, Tensor key, int[] streams, Tensor? tally, NOISE_OPTIONS,
    ScalarType? dtype=None) -> (Tensor[] noisy, Tensor range, Tensor extremes)
add_noise_backward(Tensor[] grads, Tensor[] weights, Tensor[] logits, Tensor range, Tensor extremes, Tensor key,
    int[] streams, NOISE_OPTIONS) -> (Tensor[] grad_weights, Tensor[] grad_logits, Tensor nonfinite)
quantize(Tensor[] weights, Tensor[] widths, Tensor range, int group_size, bool per_group) -> Tensor[]
dequantize(Tensor[] levels, Tensor[] widths, Tensor range, int group_size, bool per_group, ScalarType dtype)
    -> Tensor[]
fake_quantize(Tensor[] weights, Tensor[] widths, Tensor range, int group_size, bool per_group,
    ScalarType? dtype=None) -> Tensor[]
widths_from_logits(Tensor logits, float min_bits, float max_bits, str param, float extra_bits) -> Tensor
count_widths(Tensor widths) -> Tensor
pack(Tensor levels, Tensor widths, int group_size, int word_count) -> Tensor
unpack(Tensor words, Tensor widths, int group_size, int count) -> Tensor
quantize_pack(Tensor weight, Tensor widths, Tensor range, int group_size, bool per_group, int word_count) -> Tensor
quantize_planes(Tensor weight, Tensor widths, Tensor range, int group_size, int[] level_counts) -> Tensor[]
unpack_dequantize(Tensor words, Tensor widths, Tensor range, int group_size, bool per_group, int[] shape,
    ScalarType dtype) -> Tensor
pack_planes(Tensor values, int nbits, int rows, int columns) -> Tensor
pack_planes_seen(Tensor values, int nbits, int rows, int columns) -> (Tensor planes, Tensor seen)
unpack_planes(Tensor planes, int length) -> Tensor
checksum(Tensor data) -> Tensor
"""
_NOISE_OPTIONS = "int group_size, float min_bits, float max_bits, str param, str kind, bool per_group"
for _schema in _SCHEMAS.replace("\n    ", " ").replace("NOISE_OPTIONS", _NOISE_OPTIONS).strip().splitlines():
    _library.define(_schema)
_library.define("draw_key(Tensor like) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))


# -- shape rules ---------------------------------------------------------------------------------------------------


def _fake(function: Callable) -> Callable:
    """Register ``function`` as the shape rule of the operator that it is named after."""
    torch.library.register_fake(f"{NAMESPACE}::{function.__name__}", function, lib=_library)
    return function


def range_dtype(weights: Sequence[Tensor]) -> torch.dtype:
    """float64 when any weight is, else float32."""
    return torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32


@_fake
def draw_key(like: Tensor) -> Tensor:
    return like.new_empty((), dtype=torch.int64)


@_fake
def noise(key: Tensor, stream: int, first: int, count: int, kind: str) -> Tensor:
    return key.new_empty((count,), dtype=torch.float32)


@_fake
def weight_range(weights: Sequence[Tensor], group_size: int, per_group: bool) -> tuple[Tensor, Tensor]:
    rows = sum(group_count(weight.numel(), group_size) for weight in weights) if per_group else len(weights)
    found = weights[0].new_empty((rows, 2), dtype=range_dtype(weights))
    return found, weights[0].new_empty((0 if per_group else rows, 4), dtype=torch.int64)


@_fake
def add_noise(weights, logits, key, streams, tally, group_size, min_bits, max_bits, param, kind, per_group, dtype=None):
    noisy = [weight.new_empty(weight.shape, dtype=dtype) for weight in weights]
    return noisy, *weight_range(weights, group_size, per_group)


@_fake
def add_noise_backward(
    grads, weights, logits, range, extremes, key, streams, group_size, min_bits, max_bits, param, kind, per_group
):
    grad_weights = [weight.new_empty(weight.shape) for weight in weights]
    grad_logits = [logit.new_empty(logit.shape, dtype=range_dtype([logit])) for logit in logits]
    return grad_weights, grad_logits, weights[0].new_empty((len(weights),), dtype=torch.float32)


@_fake
def quantize(weights, widths, range, group_size, per_group):
    return [weight.new_empty(weight.shape, dtype=torch.int32) for weight in weights]


@_fake
def dequantize(levels, widths, range, group_size, per_group, dtype):
    return [level.new_empty(level.shape, dtype=dtype) for level in levels]


@_fake
def fake_quantize(weights, widths, range, group_size, per_group, dtype=None):
    return [weight.new_empty(weight.shape, dtype=dtype) for weight in weights]


@_fake
def widths_from_logits(logits: Tensor, min_bits: float, max_bits: float, param: str, extra_bits: float) -> Tensor:
    return logits.new_empty(logits.shape, dtype=torch.uint8)


@_fake
def count_widths(widths: Tensor) -> Tensor:
    return widths.new_empty((17,), dtype=torch.int64)


@_fake
def pack(levels: Tensor, widths: Tensor, group_size: int, word_count: int) -> Tensor:
    return levels.new_empty((word_count,), dtype=torch.int32)


@_fake
def unpack(words: Tensor, widths: Tensor, group_size: int, count: int) -> Tensor:
    return words.new_empty((count,), dtype=torch.int32)


@_fake
def quantize_pack(weight, widths, range, group_size, per_group, word_count):
    return weight.new_empty((word_count,), dtype=torch.int32)


@_fake
def quantize_planes(weight, widths, range, group_size, level_counts):
    shapes = [(-(-count // 2048), width, 32) for width, count in enumerate(level_counts, 1)]
    return [weight.new_empty(shape, dtype=torch.int64) for shape in shapes]


@_fake
def unpack_dequantize(words, widths, range, group_size, per_group, shape, dtype):
    return words.new_empty(shape, dtype=dtype)


@_fake
def pack_planes(values: Tensor, nbits: int, rows: int, columns: int) -> Tensor:
    block = rows * columns
    blocks = -(-values.numel() // block) if block else 0
    return values.new_empty((blocks, nbits, columns), dtype=PLANE_DTYPES[rows])


@_fake
def pack_planes_seen(values: Tensor, nbits: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return pack_planes(values, nbits, rows, columns), values.new_empty((), dtype=torch.int64)


@_fake
def unpack_planes(planes: Tensor, length: int) -> Tensor:
    return planes.new_empty((length,), dtype=torch.int16)


@_fake
def checksum(data: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.int64)


# -- autograd --------------------------------------------------------------------------------------------------------


_BEFORE = 5  # arguments of _AddNoise before the weights; the last of them is the tally


class _AddNoise(torch.autograd.Function):
    """Keeps the weights, the logits, their ranges and the key, and no noise: it is made again from the key.

    ``tally`` (float32 ``[weights]``) takes no part in the forward; what arrives as its gradient is the number of
    non-finite logit gradients that were put to zero. So they are counted on the device, without a mutation.
    """

    @staticmethod
    def forward(ctx, streams, options, dtype, key, tally, *tensors):
        weights, logits = tensors[: len(streams)], tensors[len(streams) :]
        with torch._C._AutoDispatchBelowAutograd():
            noisy, found, extremes = torch.ops.diffq_fast.add_noise.default(
                weights, logits, key, streams, None, *options, dtype
            )
        ctx.streams, ctx.options = streams, options
        ctx.save_for_backward(key, found, extremes, *tensors)
        ctx.mark_non_differentiable(found, extremes)
        ctx.set_materialize_grads(False)
        return found, extremes, *noisy

    @staticmethod
    @once_differentiable
    def backward(ctx, _range, _extremes, *grads):
        key, found, extremes, *tensors = ctx.saved_tensors
        count = len(ctx.streams)
        weights, logits = tensors[:count], tensors[count:]
        used = [index for index, grad in enumerate(grads) if grad is not None]
        result: list[Tensor | None] = [None] * (_BEFORE + 2 * count)
        if not used:
            return tuple(result)
        if len(used) < count:
            found, extremes = _rows_of(used, weights, found, extremes, ctx.options)
        grad_weights, grad_logits, nonfinite = torch.ops.diffq_fast.add_noise_backward.default(
            [grads[index] for index in used],
            [weights[index] for index in used],
            [logits[index] for index in used],
            found,
            extremes,
            key,
            [ctx.streams[index] for index in used],
            *ctx.options,
        )
        for index, grad_weight, grad_logit in zip(used, grad_weights, grad_logits, strict=True):
            result[_BEFORE + index] = grad_weight if ctx.needs_input_grad[_BEFORE + index] else None
            needed = ctx.needs_input_grad[_BEFORE + count + index]
            result[_BEFORE + count + index] = grad_logit.to(logits[index].dtype) if needed else None
        if ctx.needs_input_grad[_BEFORE - 1]:
            result[_BEFORE - 1] = _spread(nonfinite, used, count)
        return tuple(result)


def _rows_of(used, weights, found, extremes, options):
    """The rows of range and extremes that belong to the weights ``used``."""
    group_size, per_group = options[0], options[-1]
    if not per_group:
        return torch.stack([found[index] for index in used]), torch.stack([extremes[index] for index in used])
    pieces = found.split([group_count(weight.numel(), group_size) for weight in weights])
    return torch.cat([pieces[index] for index in used]), extremes


def _spread(nonfinite: Tensor, used: Sequence[int], count: int) -> Tensor:
    if len(used) == count:
        return nonfinite
    zero = nonfinite.new_zeros(())
    rows = [zero] * count
    for row, index in enumerate(used):
        rows[index] = nonfinite[row]
    return torch.stack(rows)


def _add_noise_autograd(
    weights, logits, key, streams, tally, group_size, min_bits, max_bits, param, kind, per_group, dtype=None
):
    if not weights or not len(weights) == len(logits) == len(streams):
        found = f"{len(weights)} weights, {len(logits)} logits, {len(streams)} streams"
        raise ValueError(f"add_noise: expected weights, and as many logits and streams, got {found}")
    options = group_size, min_bits, max_bits, param, kind, per_group
    found, extremes, *noisy = _AddNoise.apply(list(streams), options, dtype, key, tally, *weights, *logits)
    return noisy, found, extremes


_library.impl("add_noise", _add_noise_autograd, "Autograd")
