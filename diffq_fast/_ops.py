"""The operators ``torch.ops.diffq_fast.*``: each one's schema, its shape rule right below, and the gradient; no
arithmetic.

Every operator is functional, takes and returns lists of weights where a training step needs it, and is deterministic
given its arguments: randomness enters only as ``key``. So recomputation, compilation and graph capture are safe.
Conventions: ``group_size`` 0 means one group; ``per_group`` is ``range_scope="group"``; ``noise_kind`` is "uniform" or
"gaussian"; ranges are ``[weights, 2]`` or, per group, ``[groups of all weights, 2]``, each row (lo, hi).
``seen`` (int64, 0-dim) is from 0 to ``2**width - 1`` exactly when every value is; for ``width`` > 0.
Noisy and fake quantised weights have ``dtype`` (None: each its weight's); so have the gradients of noisy weights, while
those of weights have the weights'.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .reference.add_noise import noisy_weight_second_backward
from .reference.options import NoiseOptions
from .reference.planes import PLANE_DTYPES
from .reference.sizes import group_count
from .reference.weight_sizes import weight_size_backward

NAMESPACE = "diffq_fast"


def lasting_library(kind: str) -> torch.library.Library:
    """A library of operators that stay to the end of the process, as torch's own do.

    Torch takes a library's operators away when the interpreter ends, while daemon threads may be calling them.
    """
    library = torch.library.Library(NAMESPACE, kind)
    for reference in weakref.getweakrefs(library):
        if isinstance(reference.__callback__, weakref.finalize):
            reference.__callback__.atexit = False
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(library))  # nor when modules are cleared
    return library


_library = lasting_library("DEF")
_NOISE_OPTIONS = "int group_size, float min_bits, float max_bits, str param, str noise_kind, bool per_group"


def _operator(signature: str, tags: Sequence[torch.Tag] = ()) -> Callable[[Callable], Callable]:
    """Define the operator ``NAME signature``; the function below it, of the same name, is its shape rule."""

    def define(rule: Callable) -> Callable:
        @functools.wraps(rule)
        def shape_rule(*arguments: Any) -> Any:
            _refuse_mixed_devices(rule.__name__, arguments)
            return rule(*arguments)

        _library.define(rule.__name__ + signature.replace("NOISE_OPTIONS", _NOISE_OPTIONS), tags=tuple(tags))
        torch.library.register_fake(f"{NAMESPACE}::{rule.__name__}", shape_rule, lib=_library)
        return rule

    return define


def _refuse_mixed_devices(who: str, arguments: Sequence[Any]) -> None:
    """One meta tensor among others sends them all here: the others' results would never be written."""
    lists = [each if isinstance(each, list | tuple) else [each] for each in arguments]
    kinds = sorted({tensor.device.type for each in lists for tensor in each if isinstance(tensor, Tensor)})
    if "meta" in kinds and len(kinds) > 1:
        raise ValueError(f"{who}: expected all tensors on one device, got some on {' and some on '.join(kinds)}")


def range_dtype(weights: Sequence[Tensor]) -> torch.dtype:
    """float64 when any weight is, else float32."""
    return torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32


# -- training --------------------------------------------------------------------------------------------------------


@_operator("(Tensor like) -> Tensor", tags=[torch.Tag.nondeterministic_seeded])
def draw_key(like):
    return like.new_empty((), dtype=torch.int64)


@_operator("(Tensor key, int stream, int begin, int count, str noise_kind) -> Tensor")
def noise(key, stream, begin, count, noise_kind):
    return key.new_empty((count,), dtype=torch.float32)


@_operator("(Tensor[] weights, int group_size, bool per_group) -> (Tensor ranges, Tensor extremes)")
def weight_range(weights, group_size, per_group):
    rows = sum(group_count(weight.numel(), group_size) for weight in weights) if per_group else len(weights)
    ranges = weights[0].new_empty((rows, 2), dtype=range_dtype(weights))
    return ranges, weights[0].new_empty((0 if per_group else rows, 4), dtype=torch.int64)


@_operator(
    "(Tensor[] weights, Tensor[] logits, Tensor key, int[] streams, Tensor? nonfinite, NOISE_OPTIONS,"
    " ScalarType? dtype=None) -> (Tensor[] noisy, Tensor ranges, Tensor extremes)"
)
def add_noise(weights, logits, key, streams, nonfinite, *options_and_dtype):
    options, dtype = NoiseOptions.with_dtype(options_and_dtype)
    noisy = [weight.new_empty(weight.shape, dtype=dtype) for weight in weights]
    return noisy, *weight_range(weights, options.group_size, options.per_group)


@_operator(
    "(Tensor[] grads, Tensor[] weights, Tensor[] logits, Tensor ranges, Tensor extremes, Tensor key, int[] streams,"
    " NOISE_OPTIONS) -> (Tensor[] grad_weights, Tensor[] grad_logits, Tensor nonfinite)"
)
def add_noise_backward(grads, weights, logits, *others):
    grad_weights = [weight.new_empty(weight.shape) for weight in weights]
    grad_logits = [logit.new_empty(logit.shape, dtype=range_dtype([logit])) for logit in logits]
    return grad_weights, grad_logits, weights[0].new_empty((len(weights),), dtype=torch.float32)


_BEFORE = 5  # arguments of _AddNoise before the weights; the last of them is ``nonfinite``


class _AddNoise(torch.autograd.Function):
    """Keeps the weights, the logits, their ranges and the key, and no noise: it is made again from the key.

    ``nonfinite`` (float32 ``[weights]``) takes no part in the forward; what arrives as its gradient is the number of
    non-finite logit gradients that were put to zero. So they are counted on the device, without a mutation.
    """

    @staticmethod
    def forward(ctx, streams, options, dtype, key, nonfinite, *tensors):
        weights, logits = tensors[: len(streams)], tensors[len(streams) :]
        with torch._C._AutoDispatchBelowAutograd():
            noisy, ranges, extremes = torch.ops.diffq_fast.add_noise.default(
                weights, logits, key, streams, None, *options, dtype
            )
        ctx.streams, ctx.options = streams, options
        ctx.save_for_backward(key, ranges, extremes, *tensors)
        ctx.mark_non_differentiable(ranges, extremes)
        ctx.set_materialize_grads(False)
        return ranges, extremes, *noisy

    @staticmethod
    def backward(ctx, _ranges, _extremes, *grads):
        key, ranges, extremes, *tensors = ctx.saved_tensors
        count = len(ctx.streams)
        weights, logits = tensors[:count], tensors[count:]
        used = [index for index, grad in enumerate(grads) if grad is not None]
        result: list[Tensor | None] = [None] * (_BEFORE + 2 * count)
        if not used:
            return tuple(result)
        lists: Any = grads, weights, logits, ctx.streams
        if len(used) < count:
            ranges, extremes = _rows_of(used, weights, ranges, extremes, ctx.options)
            lists = [[each[index] for index in used] for each in lists]
        of_grads, of_weights, of_logits, streams = lists
        made = _gradients(of_grads, of_weights, of_logits, streams, key, ranges, extremes, ctx.options)
        grad_weights, grad_logits, nonfinite = made
        needs = ctx.needs_input_grad  # made anew each time that it is asked for: of all arguments
        for index, grad_weight, grad_logit in zip(used, grad_weights, grad_logits, strict=True):
            if needs[_BEFORE + index]:
                result[_BEFORE + index] = grad_weight
            if needs[_BEFORE + count + index]:
                logit = logits[index]
                same = grad_logit.dtype is logit.dtype
                result[_BEFORE + count + index] = grad_logit if same else grad_logit.to(logit.dtype)
        if needs[_BEFORE - 1]:
            result[_BEFORE - 1] = _spread(nonfinite, used, count)
        return tuple(result)


def _gradients(grads, weights, logits, streams, key, ranges, extremes, options):
    """The operator ``add_noise_backward``, differentiable where autograd asks for it (``create_graph``)."""
    if torch.is_grad_enabled():
        results = _Gradients.apply(streams, options, key, ranges, extremes, *grads, *weights, *logits)
        return results[: len(weights)], results[len(weights) : -1], results[-1]
    return torch.ops.diffq_fast.add_noise_backward.default(
        grads, weights, logits, ranges, extremes, key, streams, *options
    )


class _Gradients(torch.autograd.Function):
    """The gradients of :class:`_AddNoise`. Theirs come from the oracle, in plain torch and of any order."""

    @staticmethod
    def forward(ctx, streams, options, key, ranges, extremes, *tensors):
        lists = _thirds(tensors)
        ctx.streams, ctx.options = streams, options
        ctx.save_for_backward(key, *tensors)
        grad_weights, grad_logits, nonfinite = torch.ops.diffq_fast.add_noise_backward.default(
            *lists, ranges, extremes, key, streams, *options
        )
        ctx.mark_non_differentiable(nonfinite)
        ctx.set_materialize_grads(False)
        return *grad_weights, *grad_logits, nonfinite

    @staticmethod
    def backward(ctx, *grads):
        key, *tensors = ctx.saved_tensors
        options, count = NoiseOptions.from_operator(*ctx.options), len(ctx.streams)
        result: list[Tensor | None] = [None] * len(tensors)
        for index, inputs in enumerate(zip(*_thirds(tensors), strict=True)):
            noise = torch.ops.diffq_fast.noise.default(
                key, ctx.streams[index], 0, inputs[1].numel(), options.noise_kind
            )
            result[index::count] = noisy_weight_second_backward(
                (grads[index], grads[count + index]), inputs, noise, options
            )
        return (None,) * 5 + tuple(result)


def _thirds(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    count = len(tensors) // 3
    return tensors[:count], tensors[count : 2 * count], tensors[2 * count :]


def _rows_of(used, weights, ranges, extremes, options):
    """The rows of ranges and extremes that belong to the weights ``used``."""
    group_size, per_group = options[0], options[-1]
    if not per_group:
        return torch.stack([ranges[index] for index in used]), torch.stack([extremes[index] for index in used])
    pieces = ranges.split([group_count(weight.numel(), group_size) for weight in weights])
    return torch.cat([pieces[index] for index in used]), extremes


def _spread(nonfinite: Tensor, used: Sequence[int], count: int) -> Tensor:
    if len(used) == count:
        return nonfinite
    zero = nonfinite.new_zeros(())
    rows = [zero] * count
    for row, index in enumerate(used):
        rows[index] = nonfinite[row]
    return torch.stack(rows)


def _add_noise_autograd(weights, logits, key, streams, nonfinite, *options_and_dtype):
    if not weights or not len(weights) == len(logits) == len(streams):
        given = f"{len(weights)} weights, {len(logits)} logits, {len(streams)} streams"
        raise ValueError(f"add_noise: expected weights, and as many logits and streams, got {given}")
    options, dtype = options_and_dtype[:6], options_and_dtype[6] if len(options_and_dtype) > 6 else None
    ranges, extremes, *noisy = _AddNoise.apply(list(streams), options, dtype, key, nonfinite, *weights, *logits)
    return noisy, ranges, extremes


_library.impl("add_noise", _add_noise_autograd, "Autograd")


@_operator(
    "(Tensor[] weights, Tensor[] steps, Tensor key, int[] streams, int[] group_sizes, ScalarType? dtype=None)"
    " -> Tensor[]"
)
def add_uniform_noise(weights, steps, key, streams, group_sizes, dtype=None):
    return [weight.new_empty(weight.shape, dtype=dtype) for weight in weights]


@_operator("(Tensor[] grads, Tensor[] steps, Tensor key, int[] streams, int[] group_sizes) -> Tensor[]")
def add_uniform_noise_backward(grads, steps, key, streams, group_sizes):
    return [step.new_empty(step.shape) for step in steps]


_BEFORE_UNIFORM = 4  # arguments of _AddUniformNoise before the weights


class _AddUniformNoise(torch.autograd.Function):
    """Keeps the steps and the key. A weight's gradient is that of its noisy weight."""

    @staticmethod
    def forward(ctx, streams, group_sizes, dtype, key, *tensors):
        weights, steps = tensors[: len(streams)], tensors[len(streams) :]
        with torch._C._AutoDispatchBelowAutograd():
            noisy = torch.ops.diffq_fast.add_uniform_noise.default(weights, steps, key, streams, group_sizes, dtype)
        ctx.streams, ctx.group_sizes = streams, group_sizes
        ctx.dtypes = [weight.dtype for weight in weights]
        ctx.save_for_backward(key, *steps)
        ctx.set_materialize_grads(False)
        return tuple(noisy)

    @staticmethod
    def backward(ctx, *grads):
        key, *steps = ctx.saved_tensors
        count = len(steps)
        result: list[Tensor | None] = [None] * (_BEFORE_UNIFORM + 2 * count)
        used = [index for index, grad in enumerate(grads) if grad is not None]
        needs = ctx.needs_input_grad
        for index in used:
            if needs[_BEFORE_UNIFORM + index]:
                result[_BEFORE_UNIFORM + index] = grads[index].to(ctx.dtypes[index])
        used = [index for index in used if needs[_BEFORE_UNIFORM + count + index]]
        if used:
            lists = [[each[index] for index in used] for each in (ctx.streams, ctx.group_sizes, grads, steps)]
            for index, grad_steps in zip(used, _step_gradients(key, *lists), strict=True):
                result[_BEFORE_UNIFORM + count + index] = grad_steps
        return tuple(result)


def _step_gradients(key, streams, group_sizes, grads, steps):
    """The operator ``add_uniform_noise_backward``, differentiable where autograd asks for it (``create_graph``)."""
    if torch.is_grad_enabled():
        return _StepGradients.apply(streams, group_sizes, key, *grads, *steps)
    return torch.ops.diffq_fast.add_uniform_noise_backward.default(grads, steps, key, streams, group_sizes)


class _StepGradients(torch.autograd.Function):
    """The gradients of the steps. They are linear in those that come in: what goes back is noise of the same draw."""

    @staticmethod
    def forward(ctx, streams, group_sizes, key, *tensors):
        grads, steps = tensors[: len(streams)], tensors[len(streams) :]
        ctx.streams, ctx.group_sizes = streams, group_sizes
        ctx.save_for_backward(key, *grads)
        ctx.set_materialize_grads(False)
        return tuple(torch.ops.diffq_fast.add_uniform_noise_backward.default(grads, steps, key, streams, group_sizes))

    @staticmethod
    def backward(ctx, *seconds):
        key, *grads = ctx.saved_tensors
        result: list[Tensor | None] = [None] * (3 + 2 * len(grads))
        used = [index for index, second in enumerate(seconds) if second is not None]
        if used:
            zeros = [torch.zeros_like(grads[index]) for index in used]
            lists = [[each[index] for index in used] for each in (seconds, ctx.streams, ctx.group_sizes)]
            made = torch.ops.diffq_fast.add_uniform_noise.default(zeros, lists[0], key, *lists[1:])
            for index, grad in zip(used, made, strict=True):
                result[3 + index] = grad
        return tuple(result)


def _add_uniform_noise_autograd(weights, steps, key, streams, group_sizes, dtype=None):
    lengths = [len(each) for each in (weights, steps, streams, group_sizes)]
    if not weights or len(set(lengths)) > 1:
        raise ValueError(
            "add_uniform_noise: expected weights, and as many steps, streams and group_sizes, got "
            + ", ".join(map(str, lengths))
        )
    return list(_AddUniformNoise.apply(list(streams), list(group_sizes), dtype, key, *weights, *steps))


_library.impl("add_uniform_noise", _add_uniform_noise_autograd, "Autograd")


_LEARNED_BITS = "Tensor[] logits, int[] counts, int group_size, float min_bits, float max_bits, str param"


@_operator(f"({_LEARNED_BITS}, float extra_bits) -> Tensor")
def weight_sizes(logits, *others):
    return logits[0].new_empty((len(logits),), dtype=range_dtype(logits))


@_operator(f"(Tensor grads, {_LEARNED_BITS}) -> Tensor[]")
def weight_sizes_backward(grads, logits, *others):
    return [logit.new_empty(logit.shape, dtype=range_dtype([logit])) for logit in logits]


class _WeightSizes(torch.autograd.Function):
    """Keeps the logits. Gradients of higher order come from the oracle."""

    @staticmethod
    def forward(ctx, counts, rule, extra_bits, *logits):
        with torch._C._AutoDispatchBelowAutograd():
            sizes = torch.ops.diffq_fast.weight_sizes.default(logits, counts, *rule, extra_bits)
        ctx.counts, ctx.rule = counts, rule
        ctx.save_for_backward(*logits)
        return sizes

    @staticmethod
    def backward(ctx, grads):
        logits = ctx.saved_tensors
        if torch.is_grad_enabled():
            rows = zip(grads.unbind(), logits, ctx.counts, strict=True)
            made = [weight_size_backward(*row, *ctx.rule) for row in rows]
        else:
            made = torch.ops.diffq_fast.weight_sizes_backward.default(grads, logits, ctx.counts, *ctx.rule)
        return None, None, None, *[grad.to(logit.dtype) for grad, logit in zip(made, logits, strict=True)]


def _weight_sizes_autograd(logits, counts, *rule_and_extra_bits):
    if not logits or len(logits) != len(counts):
        raise ValueError(f"weight_sizes: expected logits, and as many counts, got {len(logits)} and {len(counts)}")
    *rule, extra_bits = rule_and_extra_bits
    return _WeightSizes.apply(list(counts), tuple(rule), extra_bits, *logits)


_library.impl("weight_sizes", _weight_sizes_autograd, "Autograd")


# -- export ----------------------------------------------------------------------------------------------------------


@_operator("(Tensor logits, float min_bits, float max_bits, str param, float extra_bits) -> Tensor")
def widths_from_logits(logits, min_bits, max_bits, param, extra_bits):
    return logits.new_empty(logits.shape, dtype=torch.uint8)


@_operator("(Tensor widths) -> Tensor")
def count_widths(widths):
    return widths.new_empty((17,), dtype=torch.int64)


@_operator("(Tensor[] weights, Tensor[] widths, Tensor ranges, int group_size, bool per_group) -> Tensor[]")
def quantize(weights, widths, ranges, group_size, per_group):
    return [weight.new_empty(weight.shape, dtype=torch.int32) for weight in weights]


@_operator(
    "(Tensor[] weights, Tensor[] widths, Tensor ranges, int group_size, bool per_group, ScalarType? dtype=None)"
    " -> Tensor[]"
)
def fake_quantize(weights, widths, ranges, group_size, per_group, dtype=None):
    return [weight.new_empty(weight.shape, dtype=dtype) for weight in weights]


@_operator("(Tensor levels, Tensor widths, int group_size, int word_count) -> Tensor")
def pack(levels, widths, group_size, word_count):
    return levels.new_empty((word_count,), dtype=torch.int32)


@_operator("(Tensor weight, Tensor widths, Tensor ranges, int group_size, bool per_group, int word_count) -> Tensor")
def quantize_pack(weight, widths, ranges, group_size, per_group, word_count):
    return weight.new_empty((word_count,), dtype=torch.int32)


# -- load ------------------------------------------------------------------------------------------------------------


@_operator("(Tensor words, Tensor widths, int group_size, int count) -> Tensor")
def unpack(words, widths, group_size, count):
    return words.new_empty((count,), dtype=torch.int32)


@_operator(
    "(Tensor[] levels, Tensor[] widths, Tensor ranges, int group_size, bool per_group, ScalarType dtype) -> Tensor[]"
)
def dequantize(levels, widths, ranges, group_size, per_group, dtype):
    return [level.new_empty(level.shape, dtype=dtype) for level in levels]


@_operator(
    "(Tensor words, Tensor widths, Tensor ranges, int group_size, bool per_group, int[] shape, ScalarType dtype)"
    " -> Tensor"
)
def unpack_dequantize(words, widths, ranges, group_size, per_group, shape, dtype):
    return words.new_empty(shape, dtype=dtype)


# -- coded levels ----------------------------------------------------------------------------------------------------


@_operator("(Tensor levels, int origin, int low_bits, int[] frequencies, bool escape, int block_bits) -> Tensor")
def encode_levels(levels, origin, low_bits, frequencies, escape, block_bits):
    words = torch.library.get_ctx().new_dynamic_size()
    return levels.new_empty((words,), dtype=torch.int16)


@_operator("(Tensor words, int count) -> Tensor")
def decode_levels(words, count):
    return words.new_empty((count,), dtype=torch.int32)


# -- weights that stay packed ----------------------------------------------------------------------------------------

_ROWS = "Tensor data, Tensor starts, Tensor widths, Tensor scales, Tensor offsets, int[] form"


@_operator("(Tensor levels, Tensor widths, Tensor starts, int segment, int size) -> Tensor")
def pack_rows(levels, widths, starts, segment, size):
    return levels.new_empty((size,), dtype=torch.uint8)


@_operator(f"(Tensor indices, {_ROWS}) -> Tensor")
def unpack_rows(indices, data, starts, widths, scales, offsets, form):
    return data.new_empty((indices.shape[0], form[0]), dtype=torch.float32)


@_operator(f"(Tensor input, {_ROWS}, bool int8=False, Tensor? bias=None) -> Tensor")
def packed_linear(input, data, starts, *others):
    return input.new_empty((*input.shape[:-1], starts.shape[0] - 1))


# -- diffq's bit planes ----------------------------------------------------------------------------------------------


@_operator("(Tensor values, int width, int rows, int columns) -> Tensor")
def pack_planes(values, width, rows, columns):
    block = rows * columns
    blocks = -(-values.numel() // block) if block else 0
    return values.new_empty((blocks, width, columns), dtype=PLANE_DTYPES[rows])


@_operator("(Tensor values, int width, int rows, int columns) -> (Tensor planes, Tensor seen)")
def pack_planes_seen(values, width, rows, columns):
    return pack_planes(values, width, rows, columns), values.new_empty((), dtype=torch.int64)


@_operator("(Tensor weight, Tensor widths, Tensor ranges, int group_size, int[] level_counts) -> Tensor[]")
def quantize_planes(weight, widths, ranges, group_size, level_counts):
    shapes = [(-(-count // 2048), width, 32) for width, count in enumerate(level_counts, 1)]
    return [weight.new_empty(shape, dtype=torch.int64) for shape in shapes]


@_operator("(Tensor planes, int length) -> Tensor")
def unpack_planes(planes, length):
    return planes.new_empty((length,), dtype=torch.int16)
