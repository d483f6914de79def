"""Argument checks of :mod:`diffq_fast.functional`: who, which argument, what was expected, what came.

Shapes, dtypes and devices; of values only what no tensor has to be read for. One call for each operator's arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter

import torch
from torch import Tensor

from .reference.groups import per_element
from .reference.level_code import HIGHEST_VALUE, LOWEST_VALUE
from .reference.options import NOISE_KINDS, PARAMS, NoiseOptions, unknown_choice
from .reference.packed_rows import PackedRows
from .reference.planes import PLANE_DTYPES
from .reference.sizes import MAX_WIDTH, group_count, levels_per_width, word_count

RANGE_SCOPES = ("tensor", "group")
MOST_COLUMNS = 2**32  # of bit planes; without blocks they take no memory, however many columns they have

_FLOATING = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
_dtype, _layout, _device, _shape = map(attrgetter, ("dtype", "layout", "device", "shape"))

CountWidths = Callable[[Tensor], Tensor]  # the operator count_widths


# -- single arguments ------------------------------------------------------------------------------------------------


def check_choice(who: str, argument: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise unknown_choice(who, argument, value, choices)


def check_groups(who: str, group_size: int, range_scope: str = "tensor") -> bool:
    """Whether each group has its own range."""
    check_group_size(who, group_size)
    check_choice(who, "range_scope", range_scope, RANGE_SCOPES)
    return range_scope == "group"


def check_group_size(who: str, group_size: int, also: str = "") -> None:
    """``also``: what else may be given, to be told."""
    if not hasattr(group_size, "__index__"):
        raise TypeError(f"{who}: group_size must be {also}a whole number, got {group_size!r}")
    if not 0 <= group_size < 2**63:
        raise ValueError(f"{who}: group_size must be {also}0 (one group) or positive, below 2**63, got {group_size}")


def check_has_values(who: str, argument: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise ValueError(f"{who}: {argument} must hold values, got a meta tensor")


def check_weights(who: str, weights: Sequence[Tensor]) -> None:
    if len(weights) == 0:
        raise ValueError(f"{who}: expected at least one weight, got none")
    device = weights[0].device
    if _are_plain(weights, device):
        return
    for index, weight in enumerate(weights):
        if not weight.is_floating_point():
            raise TypeError(f"{who}: weights[{index}] must be a floating tensor, got {weight.dtype}")
        if weight.layout != torch.strided:
            raise TypeError(f"{who}: weights[{index}] must be dense, got {weight.layout}; to_dense() makes it so")
        if weight.device != device:
            raise ValueError(f"{who}: weights must be on one device, got {device} and {weight.device}")


def _are_plain(tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Whether they are plainly what is expected, floating and dense on ``device``: asked of hundreds of small weights
    at once. A compiled graph looks at one after the other."""
    return (
        not torch.compiler.is_compiling()
        and _FLOATING.issuperset(map(_dtype, tensors))
        and {torch.strided}.issuperset(map(_layout, tensors))
        and {device}.issuperset(map(_device, tensors))
    )


def check_output_dtype(who: str, dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"{who}: dtype must be a floating dtype, got {dtype}")


def _check_device(who: str, argument: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{who}: {argument} must be on {device} like the rest, got {tensor.device}")


def _check_key(who: str, key: Tensor) -> None:
    if key.dtype != torch.int64 or key.dim() != 0:
        raise TypeError(f"{who}: key must be an int64 tensor without dimensions, got {key.dtype} {list(key.shape)}")


def _check_streams(who: str, argument: str, streams: Sequence[int]) -> None:
    for stream in streams:
        if not 0 <= stream < 2**32:
            raise ValueError(f"{who}: {argument} must be between 0 and 2**32 - 1, got {stream}")


def _check_per_group(
    who: str, argument: str, weights: Sequence[Tensor], values: Sequence[Tensor], group_size: int
) -> None:
    """``values`` has one flat tensor for each weight, with one value for each of its groups."""
    if len(values) != len(weights):
        raise ValueError(f"{who}: expected {len(weights)} {argument}, one per weight, got {len(values)}")
    if weights and _are_plain(weights, weights[0].device) and _are_plain(values, weights[0].device):
        counts = map(Tensor.numel, weights)
        groups = [(-(-count // group_size),) if group_size else (min(count, 1),) for count in counts]
        if list(map(_shape, values)) == groups:
            return
    for index, (weight, value) in enumerate(zip(weights, values, strict=True)):
        _check_shape(who, f"{argument}[{index}]", value, weight.numel(), group_size)
        if value.device != weight.device:
            raise ValueError(f"{who}: {argument}[{index}] is on {value.device}, its weight on {weight.device}")


def _check_shape(who: str, argument: str, value: Tensor, count: int, group_size: int) -> None:
    """One value for each group of ``count`` elements."""
    groups = -(-count // group_size) if group_size else min(count, 1)
    if value.shape != (groups,):
        raise ValueError(
            f"{who}: {argument} must have shape [{groups}], one per group of {group_size or 'all'} in "
            f"{count} elements, got {list(value.shape)}"
        )


def _check_ranges(who: str, ranges: Tensor, counts: Sequence[int], group_size: int, per_group: bool) -> None:
    rows = sum(group_count(count, group_size) for count in counts) if per_group else len(counts)
    if ranges.dtype != torch.float32 or ranges.shape != (rows, 2):
        raise ValueError(f"{who}: ranges must be float32 [{rows}, 2], got {ranges.dtype} {list(ranges.shape)}")


# -- all arguments of an operator ------------------------------------------------------------------------------------


def check_noise(key: Tensor, stream: int, begin: int, count: int, noise_kind: str) -> None:
    """Elements' bytes and their numbers are counted in 64 bits."""
    _check_key("noise", key)
    check_choice("noise", "noise_kind", noise_kind, NOISE_KINDS)
    _check_streams("noise", "stream", [stream])
    if count < 0 or begin < 0:
        raise ValueError(f"noise: count and begin must not be negative, got count={count}, begin={begin}")
    if count >= 2**60 or begin + count >= 2**63:
        raise ValueError(
            f"noise: count must be below 2**60 and begin + count below 2**63, got count={count}, begin={begin}"
        )


def check_add_noise(
    tensors: tuple[Sequence[Tensor], Sequence[Tensor], Tensor],
    options: NoiseOptions,
    streams: Sequence[int] | None,
    nonfinite: Tensor | None,
    dtype: torch.dtype | None,
) -> tuple[Sequence[int], bool]:
    """The streams, ``0, 1, …`` where none are given, and whether each group has its own range.

    ``tensors`` are weights, logits and key.
    """
    weights, logits, key = tensors
    who, count = "add_noise", len(weights)
    check_weights(who, weights)
    per_group = check_groups(who, options.group_size, options.range_scope)
    _check_key(who, key)
    _check_device(who, "key", key, weights[0].device)
    check_choice(who, "noise_kind", options.noise_kind, NOISE_KINDS)
    check_choice(who, "param", options.param, PARAMS)
    if not 0 < options.min_bits < options.max_bits < 128:  # 2**128 is no float32
        given = f"got min_bits={options.min_bits}, max_bits={options.max_bits}"
        raise ValueError(f"{who}: expected 0 < min_bits < max_bits < 128, {given}")
    _check_per_group(who, "logits", weights, logits, options.group_size)
    if not _are_plain(logits, weights[0].device):
        for index, logit in enumerate(logits):
            if not logit.is_floating_point():
                raise TypeError(f"{who}: logits[{index}] must be a floating tensor, got {logit.dtype}")
    if nonfinite is not None and nonfinite.dtype != torch.float32:
        raise TypeError(f"{who}: nonfinite must be float32, got {nonfinite.dtype}")
    if nonfinite is not None and nonfinite.shape != (count,):
        raise ValueError(f"{who}: nonfinite must have shape [{count}], one per weight, got {list(nonfinite.shape)}")
    check_output_dtype(who, dtype)
    if streams is None:
        return range(count), per_group
    if len(streams) != count:
        raise ValueError(f"{who}: expected {count} streams, one per weight, got {len(streams)}")
    _check_streams(who, "streams", streams)
    return streams, per_group


def check_add_uniform_noise(
    tensors: tuple[Sequence[Tensor], Sequence[Tensor], Tensor],
    group_sizes: Sequence[int],
    streams: Sequence[int],
    dtype: torch.dtype | None,
) -> None:
    """``tensors`` are weights, steps and key."""
    weights, steps, key = tensors
    who, count = "add_uniform_noise", len(weights)
    check_weights(who, weights)
    _check_key(who, key)
    _check_device(who, "key", key, weights[0].device)
    for argument, given in (("steps", steps), ("group_sizes", group_sizes), ("streams", streams)):
        if len(given) != count:
            raise ValueError(f"{who}: expected {count} {argument}, one per weight, got {len(given)}")
    _check_streams(who, "streams", streams)
    for index, (weight, step, group_size) in enumerate(zip(weights, steps, group_sizes, strict=True)):
        check_groups(who, group_size)
        _check_shape(who, f"steps[{index}]", step, weight.numel(), group_size)
        _check_device(who, f"steps[{index}]", step, weight.device)
        if step.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{who}: steps[{index}] must be float32 or float64, got {step.dtype}")
    check_output_dtype(who, dtype)


def check_weight_sizes(
    logits: Sequence[Tensor], counts: Sequence[int], group_size: int, rule: tuple[float, float, str]
) -> None:
    """``rule`` is min_bits, max_bits, param."""
    who, (min_bits, max_bits, param) = "weight_sizes", rule
    if len(logits) == 0 or len(logits) != len(counts):
        raise ValueError(f"{who}: expected at least one logits, and as many counts, got {len(logits)}, {len(counts)}")
    check_groups(who, group_size)
    check_choice(who, "param", param, PARAMS)
    if not 0 < min_bits < max_bits < 128:
        raise ValueError(f"{who}: expected 0 < min_bits < max_bits < 128, got {min_bits} and {max_bits}")
    for index, (logit, count) in enumerate(zip(logits, counts, strict=True)):
        if count < 0:
            raise ValueError(f"{who}: counts[{index}] must not be negative, got {count}")
        if not logit.is_floating_point():
            raise TypeError(f"{who}: logits[{index}] must be a floating tensor, got {logit.dtype}")
        _check_shape(who, f"logits[{index}]", logit, count, group_size)
        _check_device(who, f"logits[{index}]", logit, logits[0].device)


def check_quantised(
    who: str,
    tensors: tuple[Sequence[Tensor], Sequence[Tensor], Tensor],
    group_size: int,
    range_scope: str,
    dtype: torch.dtype | None = None,
) -> bool:
    """Whether each group has its own range; ``tensors`` are weights or levels, their widths and their ranges."""
    values, widths, ranges = tensors
    per_group = check_groups(who, group_size, range_scope)
    _check_per_group(who, "widths", values, widths, group_size)
    for width in widths:
        if width.dtype != torch.uint8:
            raise TypeError(f"{who}: widths must be uint8, got {width.dtype}")
    _check_ranges(who, ranges, [value.numel() for value in values], group_size, per_group)
    if values and ranges.device != values[0].device:
        raise ValueError(f"{who}: ranges are on {ranges.device}, the weights are on {values[0].device}")
    check_output_dtype(who, dtype)
    return per_group


def check_words(who: str, words: Tensor, widths: Tensor) -> None:
    if words.dtype != torch.int32 or words.dim() != 1:
        raise TypeError(f"{who}: words must be a flat int32 tensor, got {words.dtype} {list(words.shape)}")
    _check_device(who, "widths", widths, words.device)


def check_unpacked(
    who: str, ranges: Tensor, shape: Sequence[int], group_size: int, range_scope: str, device: torch.device
) -> bool:
    """Whether each group has its own range. Sizes of the shape have strides that fit 64 bits, even where one is 0."""
    if any(size < 0 for size in shape):
        raise ValueError(f"{who}: sizes of shape must not be negative, got {list(shape)}")
    if math.prod(max(size, 1) for size in shape) >= 2**60:
        raise ValueError(f"{who}: shape must have fewer than 2**60 elements, got {list(shape)}")
    per_group = check_groups(who, group_size, range_scope)
    _check_ranges(who, ranges, [math.prod(shape)], group_size, per_group)
    _check_device(who, "ranges", ranges, device)
    return per_group


def check_coded_levels(who: str, levels: Tensor) -> None:
    if levels.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"{who}: levels must be integers, got {levels.dtype}")
    check_has_values(who, "levels", levels)
    if not levels.numel():
        return
    lowest, highest = (int(limit) for limit in levels.aminmax())
    if lowest < LOWEST_VALUE or highest > HIGHEST_VALUE:
        wrong = lowest if lowest < LOWEST_VALUE else highest
        raise ValueError(f"{who}: levels must be between {LOWEST_VALUE} and {HIGHEST_VALUE}, found {wrong}")


def check_coded_words(who: str, words: Tensor, count: int) -> None:
    if words.dtype != torch.int16 or words.dim() != 1:
        raise TypeError(f"{who}: words must be a flat int16 tensor, got {words.dtype} {list(words.shape)}")
    check_has_values(who, "words", words)
    if not 0 <= count < 2**60:
        raise ValueError(f"{who}: count must be from 0 to 2**60 - 1, got {count}")


def check_rows(levels: Tensor, widths: Tensor, segment: int) -> None:
    who = "pack_rows"
    if levels.dtype != torch.int32 or levels.dim() != 2:
        raise TypeError(f"{who}: levels must be int32 [rows, columns], got {levels.dtype} {list(levels.shape)}")
    rows, columns = levels.shape
    if not 1 <= segment <= max(columns, 1) or columns % segment:
        raise ValueError(f"{who}: segment must be a part of the {columns} columns, got {segment}")
    if widths.dtype != torch.uint8 or tuple(widths.shape) != (rows, columns // segment):
        expected = f"uint8 [{rows}, {columns // segment}]"
        raise ValueError(f"{who}: widths: expected {expected}, got {widths.dtype} {list(widths.shape)}")
    check_has_values(who, "levels", levels)
    check_has_values(who, "widths", widths)
    check_width_values(who, [widths])


ROWS_DTYPES = [torch.uint8, torch.int32, torch.uint8, torch.float32, torch.float32]


def check_packed_rows(who: str, rows: PackedRows) -> None:
    tensors, form = rows[:5], rows.form
    dtypes = [tensor.dtype for tensor in tensors]
    if dtypes != ROWS_DTYPES:
        raise TypeError(f"{who}: data, starts, widths, scales and offsets must be {ROWS_DTYPES}, got {dtypes}")
    if [tensor.dim() for tensor in tensors] != [1, 1, 2, 1, 1]:
        shapes = [list(tensor.shape) for tensor in tensors]
        raise ValueError(f"{who}: expected widths [rows, bytes] and the others flat, such as scales, got {shapes}")
    if form.columns < 1 or not 1 <= form.segment <= form.columns or form.columns % form.segment or form.group_size < 0:
        raise ValueError(f"{who}: form: expected columns made of whole segments, got {form}")
    number = rows.starts.shape[0] - 1
    if number < 0 or tuple(rows.widths.shape) != (number, form.width_bytes):
        given = list(rows.widths.shape)
        raise ValueError(
            f"{who}: widths: expected [{number}, {form.width_bytes}], as many rows as starts say, got {given}"
        )
    groups = form.group_count(number) if number else 0
    for name, values in (("scales", rows.scales), ("offsets", rows.offsets)):
        if values.shape[0] < groups and not (form.centred and name == "offsets"):
            raise ValueError(f"{who}: {name}: expected {groups}, one per group, got {values.shape[0]}")


def check_planes(values: Tensor, width: int, rows: int, columns: int) -> None:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"pack_planes: values must be integers, got {values.dtype}")
    if rows not in PLANE_DTYPES:
        raise ValueError(f"pack_planes: rows must be one of {sorted(PLANE_DTYPES)}, got {rows}")
    if not 0 <= width <= MAX_WIDTH:
        raise ValueError(f"pack_planes: width must be between 0 and {MAX_WIDTH}, got {width}")
    check_has_values("pack_planes", "values", values)
    if not 0 <= columns < MOST_COLUMNS or (columns == 0 and values.numel()):
        raise ValueError(f"pack_planes: columns must be positive and below 2**32, got {columns}")


def check_unpack_planes(planes: Tensor, length: int) -> None:
    if planes.dtype not in PLANE_DTYPES.values() or planes.dim() != 3:
        raise TypeError(
            f"unpack_planes: planes must be a 3-dimensional tensor of one of "
            f"{[str(dtype) for dtype in PLANE_DTYPES.values()]}, got {planes.dtype} with {planes.dim()} dimensions"
        )
    if planes.shape[1] > MAX_WIDTH:
        raise ValueError(f"unpack_planes: expected at most {MAX_WIDTH} planes, got {planes.shape[1]}")
    if planes.shape[2] >= MOST_COLUMNS:
        raise ValueError(f"unpack_planes: expected fewer than 2**32 columns, got planes {list(planes.shape)}")
    capacity = planes.shape[0] * planes.shape[2] * planes.element_size() * 8
    if not 0 <= length <= capacity:
        raise ValueError(f"unpack_planes: length must be between 0 and {capacity}, what planes hold, got {length}")


# -- values: read where they are made, in exports --------------------------------------------------------------------


def level_counts(who: str, widths: Tensor, count: int, group_size: int, count_widths: CountWidths) -> list[int]:
    """How many of ``count`` levels have 0, 1 … 16 bits.

    Raises:
        ValueError: the widths are not one for each group, or not all from 1 to 16.
    """
    check_groups(who, group_size)
    if count < 0:
        raise ValueError(f"{who}: count must not be negative, got {count}")
    if widths.dtype != torch.uint8:
        raise TypeError(f"{who}: widths must be uint8, got {widths.dtype}")
    _check_shape(who, "widths", widths, count, group_size)
    check_has_values(who, "widths", widths)
    numbers = count_widths(widths).tolist()
    if numbers[0]:
        _refuse_widths(who, widths)
    return levels_per_width(numbers, int(widths[-1]) if len(widths) else 0, count, group_size)


def check_word_count(
    who: str, words: Tensor, widths: Tensor, count: int, group_size: int, count_widths: CountWidths
) -> None:
    """There are as many words as the widths ask for."""
    expected = word_count(level_counts(who, widths, count, group_size, count_widths))
    if words.numel() != expected:
        raise ValueError(
            f"{who}: expected {expected} packed words for {count} levels in {len(widths)} groups, got {words.numel()}"
        )


def check_width_values(who: str, widths: Sequence[Tensor]) -> None:
    """All widths are from 1 to 16."""
    for width in widths:
        check_has_values(who, "widths", width)
        if width.numel() and not torch.compiler.is_compiling():  # a graph cannot look at values
            lowest, highest = (int(limit) for limit in width.aminmax())
            if lowest < 1 or highest > MAX_WIDTH:
                _refuse_widths(who, width)


def _refuse_widths(who: str, widths: Tensor) -> None:
    lowest, highest = (int(limit) for limit in widths.aminmax())
    wrong = lowest if lowest < 1 else highest
    raise ValueError(f"{who}: bits must be between 1 and {MAX_WIDTH}, got {wrong}")


def check_levels(who: str, levels: Tensor, widths: Tensor, group_size: int) -> None:
    """Each level fits its group's width."""
    flat = levels.reshape(-1)
    check_has_values(who, "levels", levels)
    _check_device(who, "widths", widths, levels.device)
    if not flat.numel():
        return
    lowest, highest = (int(limit) for limit in flat.aminmax())
    if lowest < 0:
        raise ValueError(f"{who}: levels must not be negative, found {lowest}")
    if highest < 2 ** int(widths.min()):
        return
    too_large = (flat >> per_element(widths.to(torch.int32), flat.numel(), group_size)) != 0
    if bool(too_large.any()):
        at = int(too_large.to(torch.uint8).argmax())
        width = int(widths[at // group_size if group_size else 0])
        raise ValueError(f"{who}: level {int(flat[at])} of element {at} does not fit its group's {width} bits")
