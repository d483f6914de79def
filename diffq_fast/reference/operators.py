"""The oracle: every operator of diffq_fast, for one weight, in obvious torch code.

Every kernel is tested against this file, and it answers wherever no kernel does. Weights are flattened in logical
row-major order and cut into groups of ``group_size`` elements (0: one group); the last group may be shorter.
Floats are computed in float32, or in float64 for a float64 weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import bits_from_logits, step_and_derivative, step_from_bits

MAX_WIDTH = 16
LANES = 32
BLOCK = 1024


def group_count(count: int, group_size: int) -> int:
    """Number of groups of a weight with ``count`` elements."""
    return -(-count // group_size) if group_size else min(count, 1)


def per_element(per_group: Tensor, count: int, group_size: int) -> Tensor:
    """Spread one value per group over the group's elements: ``[groups] -> [count]``."""
    if group_size == 1:
        return per_group
    if group_size == 0 or group_size >= count:  # one group; memory by the elements there are
        return per_group.expand(count)
    return per_group.repeat_interleave(group_size)[:count]


def _grouped(flat: Tensor, group_size: int, fill: Tensor | float) -> Tensor:
    """``[count] -> [groups, group_size]``, the ragged last group filled up with ``fill``."""
    count = max(flat.numel(), 1)
    size = min(group_size or count, count)
    missing = -flat.numel() % size
    if missing:
        padding = fill.expand(missing) if isinstance(fill, Tensor) else flat.new_full((missing,), fill)
        flat = torch.cat([flat, padding])
    return flat.view(-1, size)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype a weight's arithmetic is done in."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _flat(weight: Tensor) -> Tensor:
    return weight.to(compute_dtype(weight)).reshape(-1)


# -- training ---------------------------------------------------------------------------------------------------


def weight_range(weight: Tensor, group_size: int, per_group: bool) -> Tensor:
    """``[1, 2]`` or, per group, ``[groups, 2]``: smallest and largest element. Differentiable, ties share equally."""
    flat = _flat(weight)
    if flat.numel() == 0:
        return flat.new_zeros((0 if per_group else 1, 2))
    rows = _grouped(flat, group_size, flat[-1]) if per_group else flat.view(1, -1)
    return torch.stack([rows.amin(1), rows.amax(1)], dim=1)


def extremes(weight: Tensor, weight_range: Tensor) -> Tensor:
    """int64 ``[1, 4]``: first index of the minimum and of the maximum, how many elements equal each; 0 for NaN."""
    flat = _flat(weight)
    if flat.numel() == 0:
        return torch.zeros((1, 4), dtype=torch.int64, device=weight.device)
    counts = [(flat == bound).sum() for bound in weight_range[0]]
    found = torch.stack([flat.argmin(), flat.argmax(), *counts]).view(1, 4)
    return found.masked_fill(weight_range.isnan().any(), 0)


def noisy_weight(
    weight: Tensor,
    logit: Tensor,
    noise: Tensor,
    group_size: int,
    min_bits: float,
    max_bits: float,
    param: str,
    per_group: bool,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``weight + (range * step) * noise`` in the weight's shape, differentiable in weight and logit.

    Rounded once, half to even, to ``dtype`` (None: the weight's).
    """
    flat = _flat(weight)
    step = step_from_bits(bits_from_logits(logit, min_bits, max_bits, param)).to(flat.dtype)
    bounds = weight_range(weight, group_size, per_group)
    amplitude = (bounds[:, 1] - bounds[:, 0]) * step
    noisy = flat + per_element(amplitude, flat.numel(), group_size) * noise.to(flat.dtype)
    return noisy.view(weight.shape).to(dtype or weight.dtype)


def noisy_weight_backward(
    grad: Tensor,
    weight: Tensor,
    logit: Tensor,
    bounds: Tensor,
    noise: Tensor,
    group_size: int,
    min_bits: float,
    max_bits: float,
    param: str,
    per_group: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`noisy_weight` given the range found in the forward, ``bounds`` ``[1 or groups, 2]``.

    ``grad`` may be of another dtype than the weight. Returns the gradient of the weight, the gradient of the logit with
    its non-finite entries put to zero, and how many those were (0-dim).
    """
    flat_grad = grad.to(compute_dtype(weight)).reshape(-1)
    flat = _flat(weight)
    step, derivative = step_and_derivative(logit, min_bits, max_bits, param)
    group_sums = _grouped(flat_grad.double() * noise.double(), group_size, 0.0).sum(1)
    lengths = bounds[:, 1].double() - bounds[:, 0].double()
    grad_logit = (lengths * group_sums * derivative.double()).to(step.dtype)

    amplitude_grads = group_sums * step.double()
    range_grad = amplitude_grads if per_group else amplitude_grads.sum().view(1)
    grad_flat = flat_grad + _range_gradient(flat, bounds, range_grad.to(flat.dtype), group_size, per_group)
    broken = ~grad_logit.isfinite()
    return grad_flat.view(weight.shape).to(weight.dtype), grad_logit.masked_fill(broken, 0), broken.sum()


def _range_gradient(flat: Tensor, bounds: Tensor, range_grad: Tensor, group_size: int, per_group: bool) -> Tensor:
    """``range_grad`` carried to the elements at the maximum and, with the other sign, at the minimum."""
    rows = _grouped(flat, group_size, float("nan")) if per_group else flat.view(1, -1)
    at_max = (rows == bounds[:, 1:]).to(flat.dtype)
    at_min = (rows == bounds[:, :1]).to(flat.dtype)
    shares = at_max / at_max.sum(1, keepdim=True).clamp(min=1) - at_min / at_min.sum(1, keepdim=True).clamp(min=1)
    carried = torch.where(shares != 0, shares * range_grad[:, None], 0)  # an infinite gradient reaches these alone
    return carried.reshape(-1)[: flat.numel()]


# -- export -----------------------------------------------------------------------------------------------------


def quantize(weight: Tensor, widths: Tensor, bounds: Tensor, group_size: int) -> Tensor:
    """int32 levels ``round(((w - lo) / (hi - lo)) / u)``, ``u = 1 / (2**width - 1)``, in the weight's shape."""
    flat = weight.to(torch.float32).reshape(-1)
    count = flat.numel()
    lo, length = _offset_and_length(bounds, count, group_size)
    step = per_element(step_from_bits(widths.to(torch.float32)), count, group_size)
    levels = torch.round(((flat - lo) / length) / step)
    highest = per_element(2 ** widths.to(torch.float32) - 1, count, group_size)
    levels = torch.where(length == 0, 0.0, levels).nan_to_num(0.0).clamp(min=0).minimum(highest)
    return levels.to(torch.int32).view(weight.shape)


def dequantize(levels: Tensor, widths: Tensor, bounds: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    """``level * u * (hi - lo) + lo`` in float32, then cast to ``dtype``; the levels' shape."""
    flat = levels.reshape(-1).to(torch.float32)
    lo, length = _offset_and_length(bounds, flat.numel(), group_size)
    step = per_element(step_from_bits(widths.to(torch.float32)), flat.numel(), group_size)
    return (flat * step * length + lo).view(levels.shape).to(dtype)


def _offset_and_length(bounds: Tensor, count: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Minimum and length of the range for each element, from ``[1, 2]`` or ``[groups, 2]`` bounds."""
    lo, length = bounds[:, 0], bounds[:, 1] - bounds[:, 0]
    if bounds.shape[0] == 1:
        return lo.expand(count), length.expand(count)
    return per_element(lo, count, group_size), per_element(length, count, group_size)


# -- packing: the native layout (docs/packed_format.md) -----------------------------------------------------------


def stream_words(count: int, width: int) -> int:
    """32-bit words of a stream of ``count`` levels of one width: the format's only size formula."""
    return width * -(-count // LANES)


def pack_stream(levels: Tensor, width: int) -> Tensor:
    """int32 words of one stream: blocks of 1,024 levels over 32 lanes, the last block over fewer lanes."""
    whole = levels.numel() // BLOCK * BLOCK
    rest = levels[whole:]
    lanes = -(-rest.numel() // LANES)
    rest = torch.nn.functional.pad(rest, (0, lanes * LANES - rest.numel()))
    full_blocks = _pack_blocks(levels[:whole].view(-1, 32, LANES), width)
    last_block = _pack_blocks(rest.view(1, 32, lanes), width)
    return torch.cat([full_blocks.reshape(-1), last_block.reshape(-1)])


def _pack_blocks(rows: Tensor, width: int) -> Tensor:
    """``[blocks, 32, lanes] -> [blocks, width, lanes]``: row r takes bits [r * width, (r + 1) * width) of its lane."""
    rows = rows.to(torch.int64)
    words = rows.new_zeros((rows.shape[0], width, rows.shape[2]))
    for row in range(32):
        word, shift = divmod(row * width, 32)
        words[:, word] |= (rows[:, row] << shift) & 0xFFFFFFFF
        if shift + width > 32:
            words[:, word + 1] |= rows[:, row] >> (32 - shift)
    return ((words ^ 0x80000000) - 0x80000000).to(torch.int32)


def unpack_stream(words: Tensor, width: int, count: int) -> Tensor:
    """int32 ``[count]``: inverse of :func:`pack_stream`."""
    whole = count // BLOCK
    split = whole * width * LANES
    lanes = -(-(count - whole * BLOCK) // LANES)
    full_blocks = _unpack_blocks(words[:split].view(-1, width, LANES), width)
    last_block = _unpack_blocks(words[split:].view(1, width, lanes), width)
    return torch.cat([full_blocks.reshape(-1), last_block.reshape(-1)])[:count]


def _unpack_blocks(words: Tensor, width: int) -> Tensor:
    words = words.to(torch.int64) & 0xFFFFFFFF
    rows = []
    for row in range(32):
        word, shift = divmod(row * width, 32)
        value = words[:, word] >> shift
        if shift + width > 32:
            value = value | (words[:, word + 1] << (32 - shift))
        rows.append(value & (2**width - 1))
    return torch.stack(rows, dim=1).to(torch.int32)


def count_widths(widths: Tensor) -> Tensor:
    """int64 ``[17]``: how many groups have 1, 2 … 16 bits; entry 0 counts the widths out of range."""
    flat = widths.reshape(-1).to(torch.int64)
    return torch.bincount(torch.where(flat <= MAX_WIDTH, flat, 0), minlength=MAX_WIDTH + 1)


def pack(levels: Tensor, widths: Tensor, group_size: int) -> Tensor:
    """int32 words of a weight: its streams, one per width that occurs, in ascending order of width."""
    flat = levels.reshape(-1)
    width_of = per_element(widths, flat.numel(), group_size)
    streams = [pack_stream(flat[width_of == width], width) for width in range(1, MAX_WIDTH + 1)]
    return torch.cat(streams)


def unpack(words: Tensor, widths: Tensor, group_size: int, count: int) -> Tensor:
    """int32 levels ``[count]``: inverse of :func:`pack`."""
    levels = words.new_zeros(count)
    width_of = per_element(widths, count, group_size)
    start = 0
    for width in range(1, MAX_WIDTH + 1):
        members = width_of == width
        size = int(members.sum())
        stop = start + stream_words(size, width)
        levels[members] = unpack_stream(words[start:stop], width, size)
        start = stop
    return levels


# -- packing: diffq's bit planes ----------------------------------------------------------------------------------

PLANE_DTYPES = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


def pack_planes(values: Tensor, nbits: int, rows: int, columns: int) -> Tensor:
    """``[blocks, nbits, columns]``: bit j of value [k, r, c] becomes bit r of word [k, j, c]; zero-padded blocks."""
    flat = values.reshape(-1).to(torch.int64)
    block = rows * columns
    blocks = -(-flat.numel() // block) if block else 0
    flat = torch.nn.functional.pad(flat, (0, blocks * block - flat.numel()))
    cells = flat.view(blocks, rows, columns)
    shifts = torch.arange(rows, device=values.device).view(rows, 1)
    planes = [(((cells >> bit) & 1) << shifts).sum(1) for bit in range(nbits)]
    words = torch.stack(planes, dim=1) if planes else cells.new_zeros((blocks, 0, columns))
    return words.to(PLANE_DTYPES[rows])


def worst_value(values: Tensor) -> Tensor:
    """int64, 0-dim: the smallest value if it is negative, else the largest; 0 where there are none."""
    if not values.numel():
        return values.new_zeros((), dtype=torch.int64)
    lowest, highest = values.aminmax()
    return torch.where(lowest < 0, lowest, highest).to(torch.int64)


def pack_planes_by_width(levels: Tensor, widths: Tensor, group_size: int) -> list[Tensor]:
    """:func:`pack_planes` (64 rows of 32 columns) of the levels of each width 1 … 16, in group order."""
    flat = levels.reshape(-1)
    width_of = per_element(widths, flat.numel(), group_size)
    return [pack_planes(flat[width_of == width], width, 64, 32) for width in range(1, MAX_WIDTH + 1)]


def unpack_planes(planes: Tensor, length: int) -> Tensor:
    """int16 ``[length]``: inverse of :func:`pack_planes`."""
    blocks, nbits, columns = planes.shape
    rows = planes.element_size() * 8
    shifts = torch.arange(rows, device=planes.device).view(rows, 1)
    values = torch.zeros((blocks, rows, columns), dtype=torch.int64, device=planes.device)
    for bit in range(nbits):
        values |= ((planes[:, bit, None].to(torch.int64) >> shifts) & 1) << bit
    return values.reshape(-1)[:length].to(torch.int16)
