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

from . import backends as _backends  # noqa: F401  (registers the kernels)
from ._checks import (
    check_choice,
    check_device,
    check_elements,
    check_export,
    check_group_size,
    check_has_values,
    check_key,
    check_levels,
    check_logits,
    check_output_dtype,
    check_per_group_lists,
    check_ranges,
    check_shape,
    check_streams,
    check_tally,
    check_weights,
    check_widths,
    check_words,
    is_per_group,
    level_counts,
    word_count,
)
from .reference.bits import bits_from_logits, logits_from_bits, step_from_bits, whole_bits
from .reference.operators import MAX_WIDTH, PLANE_DTYPES
from .reference.philox import NOISE_KINDS

__all__ = [  # noqa: RUF022  (the order of the data flow)
    "bits_from_logits",
    "logits_from_bits",
    "step_from_bits",
    "draw_key",
    "weight_range",
    "noise",
    "add_noise",
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
    "pack_planes",
    "quantize_planes",
    "unpack_planes",
    "checksum",
]

_ops = torch.ops.diffq_fast


class NoisyWeights(NamedTuple):
    """Result of :func:`add_noise`: the noisy weights, and the ranges that were found on the way."""

    noisy: list[Tensor]
    range: Tensor


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
    per_group = is_per_group("weight_range", range_scope)
    check_group_size("weight_range", group_size)
    with torch.no_grad():
        return _ops.weight_range.default(list(weights), group_size, per_group)[0].to(torch.float32)


def noise(key: Tensor, stream: int, count: int, *, first: int = 0, noise: str = "gaussian") -> Tensor:
    """The pseudo quantisation noise of ``count`` elements, in units of one quantisation step.

    ``"uniform"``: U[-1/2, 1/2) on a grid of 2**-16; ``"gaussian"``: N(0, 1)/2. ``docs/philox.md`` defines the bits.

    Args:
        key: int64, 0-dim (see :func:`draw_key`).
        stream: index of the weight, 0 … 2**32 - 1.
        count, first: elements ``first … first + count - 1``.

    Returns:
        float32 ``[count]`` on the key's device.

    >>> noise(torch.tensor(0), 0, 2, noise="uniform")
    tensor([ 0.4095, -0.1010])
    """
    check_key("noise", key)
    check_choice("noise", "noise", noise, NOISE_KINDS)
    check_streams("noise", "stream", [stream])
    check_elements("noise", first, count)
    return _ops.noise.default(key, stream, first, count, noise)


def add_noise(
    weights: Sequence[Tensor],
    logits: Sequence[Tensor],
    key: Tensor,
    *,
    streams: Sequence[int] | None = None,
    group_size: int = 8,
    min_bits: float = 2,
    max_bits: float = 15,
    param: str = "bits",
    noise: str = "gaussian",
    range_scope: str = "tensor",
    tally: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> NoisyWeights:
    """Noisy weights of one training forward: ``w + (range * step(logit)) * z``.

    Differentiable once in weights and logits; the gradient also reaches the elements at the minimum and the maximum,
    shared equally among ties. No noise is kept for the backward: it is made again from ``key``. Non-finite gradients
    of logits are put to zero. Method: section 3 of the paper.

    Args:
        weights: floating tensors on one device.
        logits: for each weight a tensor ``[groups]``.
        key: int64, 0-dim, from :func:`draw_key`.
        streams: index of each weight in the whole model; ``0, 1, …`` when left out.
        group_size: elements per group; 0: the whole weight is one group.
        min_bits, max_bits, param: see :func:`bits_from_logits`.
        noise: ``"gaussian"`` or ``"uniform"``.
        range_scope: ``"tensor"`` or ``"group"``.
        tally: float32 ``[weights]`` that requires grad; its gradient counts the non-finite logit gradients.
        dtype: floating dtype of the noisy weights; each weight's own when left out. The result is computed in float32
            and rounded once, so float32 weights give what a cast of their noisy weights would give. Gradients arrive
            in this dtype and leave in the weights'.

    Returns:
        :class:`NoisyWeights`: contiguous tensors of the weights' shapes, and the ranges.

    >>> w, logit = torch.zeros(4, 4), torch.zeros(2)
    >>> add_noise([w], [logit], torch.tensor(1)).noisy[0].shape
    torch.Size([4, 4])
    """
    check_weights("add_noise", weights)
    check_group_size("add_noise", group_size)
    check_key("add_noise", key)
    check_device("add_noise", "key", key, weights[0].device)
    check_choice("add_noise", "noise", noise, NOISE_KINDS)
    check_choice("add_noise", "param", param, ("bits", "noise"))
    if not 0 < min_bits < max_bits < 128:  # 2**128 is no float32
        bounds = f"got min_bits={min_bits}, max_bits={max_bits}"
        raise ValueError(f"add_noise: expected 0 < min_bits < max_bits < 128, {bounds}")
    check_per_group_lists("add_noise", "logits", weights, logits, group_size)
    check_logits("add_noise", logits)
    check_tally("add_noise", tally, len(weights))
    if dtype is not None:
        check_output_dtype("add_noise", dtype)
    if streams is None:
        streams = range(len(weights))
    elif len(streams) != len(weights):
        raise ValueError(f"add_noise: expected {len(weights)} streams, one per weight, got {len(streams)}")
    check_streams("add_noise", "streams", streams)
    per_group = is_per_group("add_noise", range_scope)
    options = (group_size, float(min_bits), float(max_bits), param, noise, per_group)
    lists = list(weights), list(logits), key, list(streams)
    noisy, found, _ = _ops.add_noise.default(*lists, tally, *options, dtype)
    return NoisyWeights(noisy, found)


# -- export ----------------------------------------------------------------------------------------------------------


def widths_from_logits(
    logits: Tensor, min_bits: float, max_bits: float, param: str = "bits", extra_bits: float = 0
) -> Tensor:
    """The whole number of bits of each group in eval and export: uint8, of the logits' shape, without gradient.

    ``whole_bits(bits_from_logits(logits, min_bits, max_bits, param), extra_bits)``, and faster than that on a CPU.

    >>> widths_from_logits(torch.tensor([-9.0, 0.0, 9.0]), 2, 15)
    tensor([ 2,  8, 15], dtype=torch.uint8)
    """
    check_has_values("widths_from_logits", "logits", logits)
    return _ops.widths_from_logits.default(logits.detach(), float(min_bits), float(max_bits), param, float(extra_bits))


def quantize(
    weights: Sequence[Tensor],
    widths: Sequence[Tensor],
    found: Tensor,
    *,
    group_size: int = 8,
    range_scope: str = "tensor",
) -> list[Tensor]:
    """Levels ``round(((w - lo) / (hi - lo)) / u)``, ``u = 1 / (2**width - 1)``, in float32, half to even.

    Args:
        weights: floating tensors on one device.
        widths: for each weight uint8 ``[groups]``, each 1 … 16.
        found: the ranges, from :func:`weight_range` with the same ``group_size`` and ``range_scope``.

    Returns:
        int32 tensors of the weights' shapes. A weight (or group) with lo = hi has level 0 everywhere.

    >>> w = torch.tensor([0.0, 1.0, 3.0])
    >>> quantize([w], [torch.tensor([2], dtype=torch.uint8)], weight_range([w]), group_size=0)
    [tensor([0, 1, 3], dtype=torch.int32)]
    """
    check_weights("quantize", weights)
    check_export("quantize", weights, widths, found, group_size, range_scope)
    return _ops.quantize.default(list(weights), list(widths), found, group_size, range_scope == "group")


def packed_word_count(widths: Tensor, count: int, group_size: int) -> int:
    """32-bit words that :func:`pack` needs: the sum over widths b of ``b * ceil(levels of width b / 32)``.

    >>> packed_word_count(torch.tensor([3, 5], dtype=torch.uint8), 16, 8)
    8
    """
    check_widths("packed_word_count", widths, count, group_size)
    return word_count(widths, count, group_size, _ops.count_widths.default)


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
    check_widths("pack", widths, levels.numel(), group_size)
    check_levels("pack", levels, widths, group_size)
    words = word_count(widths, levels.numel(), group_size, _ops.count_widths.default)
    return _ops.pack.default(levels, widths, group_size, words)


def quantize_pack(
    weight: Tensor, widths: Tensor, found: Tensor, *, group_size: int = 8, range_scope: str = "tensor"
) -> Tensor:
    """``pack(quantize(weight))`` in one pass, without the levels in memory. Arguments as there."""
    check_weights("quantize_pack", [weight])
    check_export("quantize_pack", [weight], [widths], found, group_size, range_scope)
    words = packed_word_count(widths, weight.numel(), group_size)
    return _ops.quantize_pack.default(weight, widths, found, group_size, range_scope == "group", words)


def fake_quantize(
    weights: Sequence[Tensor],
    widths: Sequence[Tensor],
    found: Tensor,
    *,
    group_size: int = 8,
    range_scope: str = "tensor",
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """``dequantize(quantize(weights))`` in one pass, without the levels in memory. Arguments as there; not
    differentiable.

    Args:
        dtype: of the results; None: each its weight's.

    >>> w = torch.tensor([0.0, 1.1, 3.0])
    >>> fake_quantize([w], [torch.tensor([2], dtype=torch.uint8)], weight_range([w]), group_size=0)
    [tensor([0., 1., 3.])]
    """
    check_weights("fake_quantize", weights)
    check_export("fake_quantize", weights, widths, found, group_size, range_scope)
    if dtype is not None:
        check_output_dtype("fake_quantize", dtype)
    with torch.no_grad():
        per_group = range_scope == "group"
        return _ops.fake_quantize.default(list(weights), list(widths), found, group_size, per_group, dtype)


# -- load ------------------------------------------------------------------------------------------------------------


def unpack(words: Tensor, widths: Tensor, count: int, *, group_size: int = 8) -> Tensor:
    """int32 levels ``[count]``: the inverse of :func:`pack`.

    Raises:
        ValueError: when ``words`` is not exactly as long as the widths ask for.
    """
    check_words("unpack", words, widths, count, group_size, _ops.count_widths.default)
    return _ops.unpack.default(words, widths, group_size, count)


def dequantize(
    levels: Sequence[Tensor],
    widths: Sequence[Tensor],
    found: Tensor,
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
    check_export("dequantize", levels, widths, found, group_size, range_scope)
    check_output_dtype("dequantize", dtype)
    return _ops.dequantize.default(list(levels), list(widths), found, group_size, range_scope == "group", dtype)


def unpack_dequantize(
    words: Tensor,
    widths: Tensor,
    found: Tensor,
    shape: Sequence[int],
    *,
    group_size: int = 8,
    range_scope: str = "tensor",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``dequantize(unpack(words))`` in one pass: the weight of ``shape`` and ``dtype``. Arguments as there."""
    check_shape("unpack_dequantize", shape)
    count = math.prod(shape)
    check_words("unpack_dequantize", words, widths, count, group_size, _ops.count_widths.default)
    check_ranges("unpack_dequantize", found, [count], group_size, range_scope)
    check_device("unpack_dequantize", "range", found, words.device)
    check_output_dtype("unpack_dequantize", dtype)
    per_group = range_scope == "group"
    return _ops.unpack_dequantize.default(words, widths, found, group_size, per_group, list(shape), dtype)


# -- diffq's bit planes ----------------------------------------------------------------------------------------------


def pack_planes(
    values: Tensor, nbits: int, *, rows: int = 64, columns: int = 32, bounds: tuple[int, int] | None = None
) -> Tensor:
    """Bit planes: values seen as ``[blocks, rows, columns]`` become words ``[blocks, nbits, columns]``.

    Bit j of value [k, r, c] is bit r of word [k, j, c]. Zero-padded to whole blocks. ``diffq_fast.bitpack`` and
    ``diffq_fast.torch_pack`` are its two uses.

    Args:
        values: integer tensor, ``0 <= value < 2**nbits``.
        nbits: planes, 0 … 16.
        rows: bits of a word: 8 (uint8), 16, 32 or 64 (signed).
        columns: words per plane and block.
        bounds: the smallest and the largest value, where they are known; they are believed.
    """
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"pack_planes: values must be integers, got {values.dtype}")
    if rows not in PLANE_DTYPES:
        raise ValueError(f"pack_planes: rows must be one of {sorted(PLANE_DTYPES)}, got {rows}")
    if not 0 <= nbits <= MAX_WIDTH:
        raise ValueError(f"pack_planes: nbits must be between 0 and {MAX_WIDTH}, got {nbits}")
    check_has_values("pack_planes", "values", values)
    if columns < 0 or (columns == 0 and values.numel()):
        raise ValueError(f"pack_planes: columns must be positive, got {columns}")
    if values.numel():
        if bounds is None and nbits:  # looked at as they are packed: a look beforehand takes half as long again
            planes, seen = _ops.pack_planes_seen.default(values, nbits, rows, columns)
            if 0 <= int(seen) < 2**nbits:
                return planes
        lowest, highest = bounds or (int(bound) for bound in values.aminmax())
        if lowest < 0 or highest >= 2**nbits:
            found = f"found {lowest if lowest < 0 else highest}"
            raise ValueError(f"pack_planes: values must be between 0 and {2**nbits - 1} for {nbits} bits, {found}")
    return _ops.pack_planes.default(values, nbits, rows, columns)


def quantize_planes(weight: Tensor, widths: Tensor, found: Tensor, *, group_size: int = 8) -> list[Tensor]:
    """Bit planes of a weight's levels, those of each width by themselves, in one pass: what a state of diffq holds.

    Entry ``width - 1`` is ``pack_planes(levels of all groups of that width, width)``, for widths 1 … 16: int64
    ``[blocks, width, 32]``, without blocks where no group has the width.

    Args:
        weight: floating tensor of any shape.
        widths: uint8 ``[groups]``, each 1 … 16.
        found: its range, float32 ``[1, 2]``, see :func:`weight_range`.

    >>> width = torch.tensor([2], dtype=torch.uint8)
    >>> planes = quantize_planes(torch.tensor([0.0, 3.0]), width, torch.tensor([[0.0, 3.0]]))
    >>> [tuple(each.shape) for each in planes[:3]]
    [(0, 1, 32), (1, 2, 32), (0, 3, 32)]
    """
    check_weights("quantize_planes", [weight])
    check_export("quantize_planes", [weight], [widths], found, group_size, "tensor")
    counts = level_counts(widths, weight.numel(), group_size, _ops.count_widths.default)[1:]
    return _ops.quantize_planes.default(weight, widths, found, group_size, counts)


def unpack_planes(planes: Tensor, length: int) -> Tensor:
    """int16 ``[length]``: the inverse of :func:`pack_planes`; ``planes`` is ``[blocks, nbits, columns]``."""
    if planes.dtype not in PLANE_DTYPES.values() or planes.dim() != 3:
        raise TypeError(
            f"unpack_planes: planes must be a 3-dimensional tensor of one of "
            f"{[str(dtype) for dtype in PLANE_DTYPES.values()]}, got {planes.dtype} with {planes.dim()} dimensions"
        )
    if planes.shape[1] > MAX_WIDTH:
        raise ValueError(f"unpack_planes: expected at most {MAX_WIDTH} planes, got {planes.shape[1]}")
    capacity = planes.shape[0] * planes.shape[2] * planes.element_size() * 8
    if not 0 <= length <= capacity:
        raise ValueError(f"unpack_planes: length must be between 0 and {capacity}, what planes hold, got {length}")
    return _ops.unpack_planes.default(planes, length)


def checksum(data: Tensor) -> int:
    """The CRC-32 of bytes, uint8 of any shape in row-major order: that of ``zlib``, at several times its speed on most
    processors of the last ten years.

    >>> f"{checksum(torch.tensor([49, 50, 51], dtype=torch.uint8)):08x}"
    '884863d2'
    """
    if data.dtype != torch.uint8:
        raise TypeError(f"checksum: data must be uint8, got {data.dtype}")
    check_has_values("checksum", "data", data)
    return int(_ops.checksum.default(data))
