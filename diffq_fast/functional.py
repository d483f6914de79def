"""The method, function by function, in the order of its data flow: training, export, load.

Typed and argument-checked entry points to ``torch.ops.diffq_fast.*``. Source: Défossez, Adi, Synnaeve,
"Differentiable Model Compression via Pseudo Quantization Noise", TMLR 2022 (arXiv 2104.09987).

Words: a weight is cut into *groups* of ``group_size`` consecutive elements of its row-major flattening (0: one
group; the last group may be shorter). ``range_scope="tensor"`` takes minimum and maximum over the whole weight,
``"group"`` over each group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import backends as _backends
from ._checks import (
    check_add_noise,
    check_add_uniform_noise,
    check_choice,
    check_coded_levels,
    check_coded_words,
    check_groups,
    check_levels,
    check_noise,
    check_output_dtype,
    check_packed_rows,
    check_planes,
    check_quantised,
    check_rows,
    check_unpack_planes,
    check_unpacked,
    check_weight_sizes,
    check_weights,
    check_width_values,
    check_word_count,
    check_words,
    level_counts,
)
from .reference import log_steps, packed_rows
from .reference.bits import bits_from_logits, logits_from_bits, step_from_bits, whole_bits
from .reference.level_code import CodeError, LevelCode, StreamHead, choose_code, code_problem, histogram, read_head
from .reference.options import NoiseOptions
from .reference.packed_rows import PackedRows, RowForm
from .reference.sizes import word_count

__all__ = [  # noqa: RUF022  (the order of the data flow)
    "NoiseOptions",
    "bits_from_logits",
    "logits_from_bits",
    "step_from_bits",
    "draw_key",
    "weight_range",
    "noise",
    "add_noise",
    "add_uniform_noise",
    "weight_sizes",
    "whole_bits",
    "widths_from_logits",
    "quantize",
    "packed_word_count",
    "pack",
    "quantize_pack",
    "fake_quantize",
    "unpack",
    "dequantize",
    "unpack_dequantize",
    "LevelCode",
    "steps_from_codes",
    "codes_from_steps",
    "level_code",
    "encode_levels",
    "stream_size",
    "decode_levels",
    "RowForm",
    "PackedRows",
    "pack_rows",
    "unpack_rows",
    "packed_linear",
    "pack_planes",
    "quantize_planes",
    "unpack_planes",
    "empty_cache",
]

_ops = torch.ops.diffq_fast


class NoisyWeights(NamedTuple):
    """Result of :func:`add_noise`: the noisy weights, and the ranges, which are made on the way."""

    noisy: list[Tensor]
    ranges: Tensor


# -- training --------------------------------------------------------------------------------------------------------


def draw_key(like: Tensor) -> Tensor:
    """A fresh key for the noise of one training forward.

    Drawn from torch's generator of ``like``'s device, so ``torch.manual_seed`` rules it. int64, 0-dim, all 64 bits.

    >>> _ = torch.manual_seed(0); draw_key(torch.zeros(1)).dtype
    torch.int64
    """
    return _ops.draw_key.default(like)


def weight_range(weights: Sequence[Tensor], *, group_size: int = 0, range_scope: str = "tensor") -> Tensor:
    """Smallest and largest element of each weight, or of each group.

    Args:
        weights: floating tensors of any shape on one device.
        group_size: elements per group; matters only for ``range_scope="group"``.
        range_scope: ``"tensor"`` or ``"group"``.

    Returns:
        float32 ``[weights, 2]`` or ``[groups of all weights, 2]``, rows (lo, hi); NaN where the weight has a NaN;
        (0, 0) for an empty weight. Not differentiable: :func:`add_noise` carries the range's gradient itself.

    >>> weight_range([torch.tensor([3.0, -1.0, 2.0])])
    tensor([[-1.,  3.]])
    """
    check_weights("weight_range", weights)
    per_group = check_groups("weight_range", group_size, range_scope)
    with torch.no_grad():
        return _ops.weight_range.default(list(weights), group_size, per_group)[0].to(torch.float32)


def noise(key: Tensor, stream: int, count: int, *, begin: int = 0, noise_kind: str = "gaussian") -> Tensor:
    """The pseudo quantisation noise of ``count`` elements, in units of one quantisation step.

    ``"uniform"``: U[-1/2, 1/2) on a grid of 2**-16; ``"gaussian"``: N(0, 1)/2. ``docs/philox.md`` defines the bits.

    Args:
        key: int64, 0-dim (see :func:`draw_key`).
        stream: index of the weight, 0 … 2**32 - 1.
        count, begin: elements ``begin … begin + count - 1``.

    Returns:
        float32 ``[count]`` on the key's device.

    >>> noise(torch.tensor(0), 0, 2, noise_kind="uniform")
    tensor([ 0.4095, -0.1010])
    """
    check_noise(key, stream, begin, count, noise_kind)
    return _ops.noise.default(key, stream, begin, count, noise_kind)


def add_noise(
    weights: Sequence[Tensor],
    logits: Sequence[Tensor],
    key: Tensor,
    options: NoiseOptions = NoiseOptions(),  # noqa: B008  (it cannot be changed)
    *,
    streams: Sequence[int] | None = None,
    nonfinite: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> NoisyWeights:
    """Noisy weights of one training forward: ``w + (range * step(logit)) * z``.

    Differentiable in weights and logits, to any order; the gradient also reaches the elements at the minimum and the
    maximum, shared equally among ties. Orders above the first are computed in plain PyTorch. No noise is kept for the
    backward: it is made again from ``key``. Non-finite gradients of logits are put to zero. Nothing waits for the
    device. Method: section 3 of the paper.

    Args:
        weights: floating tensors on one device.
        logits: for each weight a tensor ``[groups]``.
        key: int64, 0-dim, from :func:`draw_key`.
        options: groups, rule of the bits, kind of noise, scope of the ranges.
        streams: index of each weight in the whole model; ``0, 1, …`` when left out.
        nonfinite: float32 ``[weights]`` that requires grad; its gradient counts the non-finite logit gradients.
        dtype: floating dtype of the noisy weights; each weight's own when left out. The result is computed in float32
            and rounded once, so float32 weights give what a cast of their noisy weights would give. Gradients arrive
            in this dtype and leave in the weights'.

    Returns:
        :class:`NoisyWeights`: contiguous tensors of the weights' shapes, and the ranges.

    >>> w, logit = torch.zeros(4, 4), torch.zeros(2)
    >>> add_noise([w], [logit], torch.tensor(1)).noisy[0].shape
    torch.Size([4, 4])
    """
    streams, per_group = check_add_noise((weights, logits, key), options, streams, nonfinite, dtype)
    lists = list(weights), list(logits), key, list(streams)
    noisy, ranges, _ = _ops.add_noise.default(*lists, nonfinite, *options[:5], per_group, dtype)
    return NoisyWeights(noisy, ranges)


def add_uniform_noise(
    weights: Sequence[Tensor],
    steps: Sequence[Tensor],
    key: Tensor,
    *,
    group_sizes: Sequence[int],
    streams: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Weights with the noise of rounding to whole multiples of a step: ``w + step * z``, z from U[-1/2, 1/2).

    Differentiable once in weights and steps: a weight's gradient is its noisy weight's, a step's is the sum of
    ``gradient * z`` over its group, with z made again from ``key``. Nothing is looked at for it but the weights: no
    ranges. Nothing waits for the device. Source: Ballé, Laparra, Simoncelli, "End-to-end Optimized Image Compression",
    ICLR 2017.

    Args:
        weights: floating tensors on one device.
        steps: for each weight a float32 tensor ``[groups]`` (float64 for a float64 weight, if wanted), in the weight's
            unit.
        key: int64, 0-dim, from :func:`draw_key`.
        group_sizes: elements per group, of each weight; 0: one group.
        streams: index of each weight in the whole model; ``0, 1, …`` when left out.
        dtype: floating dtype of the noisy weights, as in :func:`add_noise`.

    Returns:
        Contiguous tensors of the weights' shapes.

    >>> add_uniform_noise([torch.zeros(2)], [torch.tensor([0.5, 2.0])], torch.tensor(0), group_sizes=[1])
    [tensor([ 0.2048, -0.2019])]
    """
    streams = range(len(weights)) if streams is None else streams
    check_add_uniform_noise((weights, steps, key), group_sizes, streams, dtype)
    lists = list(weights), list(steps), key, list(streams), list(group_sizes)
    return _ops.add_uniform_noise.default(*lists, dtype)


def weight_sizes(
    logits: Sequence[Tensor],
    counts: Sequence[int],
    options: NoiseOptions = NoiseOptions(),  # noqa: B008  (it cannot be changed)
    *,
    extra_bits: float = 0,
) -> Tensor:
    """The bits that weights take in a file: ``extra_bits + bits(logit)`` for each element, and a table of widths.

    An entry of the table, one for each group, has ``ceil(log2(1 + round(most bits) - lowest))`` bits; lowest is
    ``min_bits``, or, with negative ``extra_bits``, the fewest bits if they are below. Differentiable in the logits, to
    any order, but for the table. One pass over the logits, and one for the gradient. Nothing waits for the device.

    Args:
        logits: for each weight a floating tensor ``[groups]``, all on one device.
        counts: elements of each weight.
        options: groups and rule of the bits; the noise does not matter.
        extra_bits: added to the bits.

    Returns:
        float32 ``[weights]`` (float64 where a logit is), without ranges; NaN where a logit is NaN.

    >>> weight_sizes([torch.zeros(2)], [12], NoiseOptions(min_bits=2, max_bits=8))
    tensor([64.])
    """
    check_weight_sizes(logits, counts, options.group_size, options.rule)
    rule = options.operator_arguments()[:4]
    return _ops.weight_sizes.default(list(logits), list(counts), *rule, float(extra_bits))


# -- export ----------------------------------------------------------------------------------------------------------


def widths_from_logits(
    logits: Tensor, min_bits: float, max_bits: float, param: str = "bits", extra_bits: float = 0
) -> Tensor:
    """The whole number of bits of each group in eval and export: uint8, of the logits' shape, without gradient.

    ``whole_bits(bits_from_logits(logits, min_bits, max_bits, param), extra_bits)``, and faster than that on a CPU.

    >>> widths_from_logits(torch.tensor([-9.0, 0.0, 9.0]), 2, 15)
    tensor([ 2,  8, 15], dtype=torch.uint8)
    """
    if logits.is_meta:
        raise ValueError("widths_from_logits: logits must hold values, got a meta tensor")
    return _ops.widths_from_logits.default(logits.detach(), float(min_bits), float(max_bits), param, float(extra_bits))


def quantize(
    weights: Sequence[Tensor],
    widths: Sequence[Tensor],
    ranges: Tensor,
    *,
    group_size: int = 8,
    range_scope: str = "tensor",
) -> list[Tensor]:
    """Levels ``round(((w - lo) / (hi - lo)) / u)``, ``u = 1 / (2**width - 1)``, in float32, half to even.

    Args:
        weights: floating tensors on one device.
        widths: for each weight uint8 ``[groups]``, each 1 … 16.
        ranges: from :func:`weight_range` with the same ``group_size`` and ``range_scope``.

    Returns:
        int32 tensors of the weights' shapes. A weight (or group) with lo = hi has level 0 everywhere.

    >>> w = torch.tensor([0.0, 1.0, 3.0])
    >>> quantize([w], [torch.tensor([2], dtype=torch.uint8)], weight_range([w]), group_size=0)
    [tensor([0, 1, 3], dtype=torch.int32)]
    """
    check_weights("quantize", weights)
    per_group = check_quantised("quantize", (weights, widths, ranges), group_size, range_scope)
    check_width_values("quantize", widths)
    return _ops.quantize.default(list(weights), list(widths), ranges, group_size, per_group)


def packed_word_count(widths: Tensor, count: int, group_size: int) -> int:
    """32-bit words that :func:`pack` needs: the sum over widths b of ``b * ceil(levels of width b / 32)``.

    >>> packed_word_count(torch.tensor([3, 5], dtype=torch.uint8), 16, 8)
    8
    """
    return word_count(level_counts("packed_word_count", widths, count, group_size, _ops.count_widths.default))


def pack(levels: Tensor, widths: Tensor, *, group_size: int = 8) -> Tensor:
    """Pack levels into 32-bit words, each group at its own width, in the layout of ``docs/packed_format.md``.

    Args:
        levels: int32, any shape, ``0 <= level < 2**width`` of its group.
        widths: uint8 ``[groups]``, each 1 … 16.

    Returns:
        int32 ``[packed_word_count(...)]``; read the bits as uint32.

    >>> pack(torch.arange(8, dtype=torch.int32), torch.tensor([3], dtype=torch.uint8)).tolist()
    [16434824, 0, 0]
    """
    if levels.dtype != torch.int32:
        raise TypeError(f"pack: levels must be int32, got {levels.dtype}")
    counts = level_counts("pack", widths, levels.numel(), group_size, _ops.count_widths.default)
    check_levels("pack", levels, widths, group_size)
    return _ops.pack.default(levels, widths, group_size, word_count(counts))


def quantize_pack(
    weight: Tensor, widths: Tensor, ranges: Tensor, *, group_size: int = 8, range_scope: str = "tensor"
) -> Tensor:
    """``pack(quantize(weight))`` in one pass, without the levels in memory. Arguments as there."""
    check_weights("quantize_pack", [weight])
    per_group = check_quantised("quantize_pack", ([weight], [widths], ranges), group_size, range_scope)
    counts = level_counts("quantize_pack", widths, weight.numel(), group_size, _ops.count_widths.default)
    return _ops.quantize_pack.default(weight, widths, ranges, group_size, per_group, word_count(counts))


def fake_quantize(
    weights: Sequence[Tensor],
    widths: Sequence[Tensor],
    ranges: Tensor,
    *,
    group_size: int = 8,
    range_scope: str = "tensor",
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """``dequantize(quantize(weights))`` in one pass, without the levels in memory. Arguments as there; not
    differentiable.

    Training steps call it, so it waits for no device: that the widths are from 1 to 16 is not looked at. On a CPU one
    above 16 counts as 16, and one of 0 makes its group the range's lo; a GPU makes any values of such groups.

    Args:
        dtype: of the results; None: each its weight's.

    >>> w = torch.tensor([0.0, 1.1, 3.0])
    >>> fake_quantize([w], [torch.tensor([2], dtype=torch.uint8)], weight_range([w]), group_size=0)
    [tensor([0., 1., 3.])]
    """
    check_weights("fake_quantize", weights)
    per_group = check_quantised("fake_quantize", (weights, widths, ranges), group_size, range_scope, dtype)
    with torch.no_grad():
        return _ops.fake_quantize.default(list(weights), list(widths), ranges, group_size, per_group, dtype)


# -- load ------------------------------------------------------------------------------------------------------------


def unpack(words: Tensor, widths: Tensor, count: int, *, group_size: int = 8) -> Tensor:
    """int32 levels ``[count]``: the inverse of :func:`pack`.

    Raises:
        ValueError: when ``words`` is not exactly as long as the widths ask for.
    """
    check_words("unpack", words, widths)
    check_word_count("unpack", words, widths, count, group_size, _ops.count_widths.default)
    return _ops.unpack.default(words, widths, group_size, count)


def dequantize(
    levels: Sequence[Tensor],
    widths: Sequence[Tensor],
    ranges: Tensor,
    *,
    group_size: int = 8,
    range_scope: str = "tensor",
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Weights ``level * u * (hi - lo) + lo``, in float32, then cast to ``dtype``; the levels' shapes.

    >>> width = torch.tensor([2], dtype=torch.uint8)
    >>> dequantize([torch.tensor([0, 1, 3], dtype=torch.int32)], [width], torch.tensor([[0.0, 3.0]]), group_size=0)
    [tensor([0., 1., 3.])]
    """
    for index, level in enumerate(levels):
        if level.dtype != torch.int32:
            raise TypeError(f"dequantize: levels[{index}] must be int32, got {level.dtype}")
    per_group = check_quantised("dequantize", (levels, widths, ranges), group_size, range_scope, dtype)
    check_width_values("dequantize", widths)
    return _ops.dequantize.default(list(levels), list(widths), ranges, group_size, per_group, dtype)


def unpack_dequantize(
    words: Tensor,
    widths: Tensor,
    ranges: Tensor,
    shape: Sequence[int],
    *,
    group_size: int = 8,
    range_scope: str = "tensor",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``dequantize(unpack(words))`` in one pass: the weight of ``shape`` and ``dtype``. Arguments as there."""
    who = "unpack_dequantize"
    check_words(who, words, widths)
    per_group = check_unpacked(who, ranges, shape, group_size, range_scope, words.device)
    check_output_dtype(who, dtype)
    check_word_count(who, words, widths, math.prod(shape), group_size, _ops.count_widths.default)
    return _ops.unpack_dequantize.default(words, widths, ranges, group_size, per_group, list(shape), dtype)


# -- coded levels ----------------------------------------------------------------------------------------------------


def steps_from_codes(codes: Tensor) -> Tensor:
    """float32 steps ``2 ** (codes / 16)``, the same bits everywhere: those of a coded file.

    Args:
        codes: integer tensor of any shape, -1600 … 1599.

    >>> steps_from_codes(torch.tensor([-16, 0, 8]))
    tensor([0.5000, 1.0000, 1.4142])
    """
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"steps_from_codes: codes must be integers, got {codes.dtype}")
    return log_steps.steps_from_codes(codes)


def codes_from_steps(steps: Tensor) -> Tensor:
    """int16 codes of the steps of a coded file that are nearest on a logarithmic scale: 2.2 per cent off at most.

    Without gradient; nothing is read on the host. What is no positive number gets the lowest code.

    Args:
        steps: floating tensor of any shape.
    """
    if not steps.is_floating_point():
        raise TypeError(f"codes_from_steps: steps must be floating, got {steps.dtype}")
    return log_steps.codes_from_steps(steps)


def level_code(levels: Tensor) -> LevelCode:
    """The code that takes the fewest bits for these levels, by their histogram.

    Args:
        levels: integer tensor of any shape, -32768 … 32767.
    """
    check_coded_levels("level_code", levels)
    return choose_code(*histogram(levels))[0] if levels.numel() else LevelCode(0, 0)


def encode_levels(levels: Tensor, code: LevelCode | None = None) -> Tensor:
    """One stream of coded levels, ``docs/packed_format.md``, section 10: int16 words ``[words]``.

    Twice their number is the stream's size in bytes, exactly. No levels make no stream, and no words.

    Args:
        levels: integer tensor of any shape, -32768 … 32767; the stream has them in row-major order.
        code: what :func:`level_code` gives, which is taken when left out.

    Raises:
        ValueError: the code is none, or has no symbol for some level.

    >>> len(encode_levels(torch.zeros(1000, dtype=torch.int32)))
    2
    """
    check_coded_levels("encode_levels", levels)
    code = level_code(levels) if code is None else code
    problem = code_problem(code, len(code.frequencies) or 1)
    if problem:
        raise ValueError(f"encode_levels: code: {problem}")
    table = code.origin, code.low_bits, list(code.frequencies), code.escape, code.block_bits
    return _ops.encode_levels.default(levels, *table)


def stream_size(words: Tensor, count: int) -> int:
    """How many of the int16 ``words`` belong to the stream of ``count`` levels that they begin with; 0 for no levels.

    Raises:
        CodeError: (a ValueError) they begin with no such stream, or with a part of one only.
    """
    head = _stream_head("stream_size", words, count)
    return head.stream_size(count) if head else 0


def decode_levels(words: Tensor, count: int) -> Tensor:
    """int32 levels ``[count]``: the inverse of :func:`encode_levels`. Words behind the stream are not read.

    Raises:
        CodeError: (a ValueError) the words begin with no such stream. Nothing is taken on trust: a damaged one is
            refused, or gives other levels, and never reads beyond the words.
    """
    _stream_head("decode_levels", words, count)
    try:
        return _ops.decode_levels.default(words, count)
    except CodeError as error:
        raise CodeError(f"decode_levels: {error}") from None


def _stream_head(who: str, words: Tensor, count: int) -> StreamHead | None:
    """The head, of a stream that has room in the words; None for no levels, which have no stream."""
    check_coded_words(who, words, count)
    if not count:
        return None
    try:
        head = read_head(words.contiguous().cpu().numpy().view("uint8").data, count)
    except CodeError as error:
        raise CodeError(f"{who}: {error}") from None
    if head.stream_size(count) > len(words):
        raise CodeError(f"{who}: expected {head.stream_size(count):,} words, found {len(words):,}")
    return head


# -- weights that stay packed ----------------------------------------------------------------------------------------


def pack_rows(levels: Tensor, widths: Tensor, segment: int) -> tuple[Tensor, Tensor, Tensor]:
    """Levels as rows that each decode alone (docs/runtime.md): the data, starts and widths of :class:`PackedRows`.

    Args:
        levels: int32 ``[rows, columns]``, each from 0 to ``2**width - 1``.
        widths: uint8 ``[rows, columns / segment]``, 1 … 16: of each segment.
        segment: elements that have one width; a part of ``columns``.

    >>> data, starts, widths = pack_rows(torch.tensor([[0, 1, 3, 2]], dtype=torch.int32), torch.tensor([[2]]).byte(), 4)
    >>> bin(data[0])
    '0b10110100'
    """
    check_rows(levels, widths, segment)
    starts, size = packed_rows.row_starts(widths, levels.shape[1], segment)
    return _ops.pack_rows.default(levels, widths, starts, segment, size), starts, packed_rows.half_bytes(widths)


def unpack_rows(indices: Tensor, rows: PackedRows) -> Tensor:
    """Some rows of a weight whose levels stay packed: float32 ``[len(indices), columns]``.

    Args:
        indices: int64 ``[number]``, each of a row.
        rows: as :func:`.reference.packed_rows.pack_rows` makes them (docs/runtime.md).

    Raises:
        ValueError: an index that is none, or rows that do not lie in their data.
    """
    check_packed_rows("unpack_rows", rows)
    if indices.dtype != torch.int64 or indices.dim() != 1:
        given = f"{indices.dtype} {list(indices.shape)}"
        raise TypeError(f"unpack_rows: indices must be a flat int64 tensor, got {given}")
    return _ops.unpack_rows.default(indices, *rows.arguments())


def packed_linear(input: Tensor, rows: PackedRows, *, activations: str = "float", bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias`` with a weight whose levels stay packed: ``[..., rows]`` in the input's dtype.

    Sums are made in float32, and differ from those of the unpacked weight by rounding. Not differentiable.

    Args:
        input: floating ``[..., columns]``.
        activations: "float", or "int8": each 64 columns of an input vector are rounded to whole numbers from -127 to
            127 times their largest absolute value over 127. A block with an element that is not finite is NaN.
        bias: floating ``[rows]``, or None.

    Raises:
        ValueError: another number of columns, or rows that do not lie in their data.
    """
    check_packed_rows("packed_linear", rows)
    check_choice("packed_linear", "activations", activations, packed_rows.ACTIVATIONS)
    if not input.is_floating_point():
        raise TypeError(f"packed_linear: input must be floating, got {input.dtype}")
    if input.dim() == 0 or input.shape[-1] != rows.form.columns:
        raise ValueError(
            f"packed_linear: input: expected {rows.form.columns} columns, got the shape {list(input.shape)}"
        )
    count = rows.starts.shape[0] - 1
    if bias is not None and (not bias.is_floating_point() or tuple(bias.shape) != (count,)):
        raise ValueError(f"packed_linear: bias: expected floating [{count}], got {bias.dtype} {list(bias.shape)}")
    return _ops.packed_linear.default(input, *rows.arguments(), activations == "int8", bias)


# -- diffq's bit planes ----------------------------------------------------------------------------------------------


def pack_planes(
    values: Tensor, width: int, *, rows: int = 64, columns: int = 32, limits: tuple[int, int] | None = None
) -> Tensor:
    """Bit planes: values seen as ``[blocks, rows, columns]`` become words ``[blocks, width, columns]``.

    Bit j of value [k, r, c] is bit r of word [k, j, c]. Zero-padded to whole blocks. ``diffq_fast.bitpack`` and
    ``diffq_fast.torch_pack`` are its two uses.

    Args:
        values: integer tensor, ``0 <= value < 2**width``.
        width: planes, 0 … 16.
        rows: bits of a word: 8 (uint8), 16, 32 or 64 (signed).
        columns: words per plane and block.
        limits: the smallest and the largest value, where they are known; they are believed.
    """
    check_planes(values, width, rows, columns)
    if values.numel():
        if limits is None and width:  # looked at as they are packed: a look beforehand takes half as long again
            planes, seen = _ops.pack_planes_seen.default(values, width, rows, columns)
            if 0 <= int(seen) < 2**width:
                return planes
        lowest, highest = limits or (int(limit) for limit in values.aminmax())
        if lowest < 0 or highest >= 2**width:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(
                f"pack_planes: values must be between 0 and {2**width - 1} for {width} bits, found {wrong}"
            )
    return _ops.pack_planes.default(values, width, rows, columns)


def quantize_planes(weight: Tensor, widths: Tensor, ranges: Tensor, *, group_size: int = 8) -> list[Tensor]:
    """Bit planes of a weight's levels, those of each width by themselves, in one pass: what a state of diffq holds.

    Entry ``width - 1`` is ``pack_planes(levels of all groups of that width, width)``, for widths 1 … 16: int64
    ``[blocks, width, 32]``, without blocks where no group has the width.

    Args:
        weight: floating tensor of any shape.
        widths: uint8 ``[groups]``, each 1 … 16.
        ranges: its own, float32 ``[1, 2]``, see :func:`weight_range`.

    >>> width = torch.tensor([2], dtype=torch.uint8)
    >>> planes = quantize_planes(torch.tensor([0.0, 3.0]), width, torch.tensor([[0.0, 3.0]]))
    >>> [tuple(each.shape) for each in planes[:3]]
    [(0, 1, 32), (1, 2, 32), (0, 3, 32)]
    """
    check_weights("quantize_planes", [weight])
    check_quantised("quantize_planes", ([weight], [widths], ranges), group_size, "tensor")
    counts = level_counts("quantize_planes", widths, weight.numel(), group_size, _ops.count_widths.default)
    return _ops.quantize_planes.default(weight, widths, ranges, group_size, counts[1:])


def unpack_planes(planes: Tensor, length: int) -> Tensor:
    """int16 ``[length]``: the inverse of :func:`pack_planes`; ``planes`` is ``[blocks, width, columns]``."""
    check_unpack_planes(planes, length)
    return _ops.unpack_planes.default(planes, length)


# -- memory ----------------------------------------------------------------------------------------------------------


memory = _backends.memory  # fingerprints of tensors on the CPU: whether what was made of them still holds
# For packed layers, whose rows do not change: the operators, and the compiled core's kernel of the product, or None,
# for calls that only the kernel has to see.
unpack_rows_operator = _ops.unpack_rows.default
packed_linear_operator = _ops.packed_linear.default
packed_linear_on_cpu = _backends.packed_linear_on_cpu


def empty_cache() -> None:
    """Give back to the system the memory that the compiled core keeps for its next results on the CPU.

    At most 512 MB of it are kept: pages that the system must clear first cost more than the kernels that fill them.
    On Linux with glibc, what its heap keeps free is given back too, which takes longer the larger that is.
    Tensors in use keep theirs. On a GPU, ``torch.cuda.empty_cache()`` does the like.
    """
    _backends.empty_cache()
