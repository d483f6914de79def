"""Argument checks of :mod:`diffq_fast.functional`: who, which argument, what was expected, what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reference.operators import MAX_WIDTH, group_count, per_element, stream_words

RANGE_SCOPES = ("tensor", "group")

CountWidths = Callable[[Tensor], Tensor]  # the operator count_widths


def check_choice(who: str, argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{who}: {argument} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def is_per_group(who: str, range_scope: str) -> bool:
    check_choice(who, "range_scope", range_scope, RANGE_SCOPES)
    return range_scope == "group"


def check_group_size(who: str, group_size: int) -> None:
    if not 0 <= group_size < 2**63:
        raise ValueError(f"{who}: group_size must be 0 (one group) or positive, below 2**63, got {group_size}")


def check_elements(who: str, first: int, count: int) -> None:
    """Their bytes and their numbers are counted in 64 bits."""
    if count < 0 or first < 0:
        raise ValueError(f"{who}: count and first must not be negative, got count={count}, first={first}")
    if count >= 2**60 or first + count >= 2**63:
        raise ValueError(
            f"{who}: count must be below 2**60 and first + count below 2**63, got count={count}, first={first}"
        )


def check_shape(who: str, shape: Sequence[int]) -> None:
    """Sizes whose strides fit 64 bits, even where one size is 0."""
    if any(size < 0 for size in shape):
        raise ValueError(f"{who}: sizes of shape must not be negative, got {list(shape)}")
    if math.prod(max(size, 1) for size in shape) >= 2**60:
        raise ValueError(f"{who}: shape must have fewer than 2**60 elements, got {list(shape)}")


def check_device(who: str, argument: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{who}: {argument} must be on {device} like the rest, got {tensor.device}")


def check_has_values(who: str, argument: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise ValueError(f"{who}: {argument} must hold values, got a meta tensor")


def check_key(who: str, key: Tensor) -> None:
    if key.dtype != torch.int64 or key.dim() != 0:
        raise TypeError(f"{who}: key must be an int64 tensor without dimensions, got {key.dtype} {list(key.shape)}")


def check_weights(who: str, weights: Sequence[Tensor]) -> None:
    if len(weights) == 0:
        raise ValueError(f"{who}: expected at least one weight, got none")
    device = weights[0].device
    for index, weight in enumerate(weights):
        if not weight.is_floating_point():
            raise TypeError(f"{who}: weights[{index}] must be a floating tensor, got {weight.dtype}")
        if weight.layout != torch.strided:
            raise TypeError(f"{who}: weights[{index}] must be dense, got {weight.layout}; to_dense() makes it so")
        if weight.device != device:
            raise ValueError(f"{who}: weights must be on one device, got {device} and {weight.device}")


def check_per_group_lists(
    who: str, argument: str, weights: Sequence[Tensor], values: Sequence[Tensor], group_size: int
) -> None:
    if len(values) != len(weights):
        raise ValueError(f"{who}: expected {len(weights)} {argument}, one per weight, got {len(values)}")
    for index, (weight, value) in enumerate(zip(weights, values, strict=True)):
        groups = group_count(weight.numel(), group_size)
        if value.shape != (groups,):
            raise ValueError(
                f"{who}: {argument}[{index}] must have shape [{groups}], one per group of {group_size or 'all'} in "
                f"{weight.numel()} elements, got {list(value.shape)}"
            )
        if value.device != weight.device:
            raise ValueError(f"{who}: {argument}[{index}] is on {value.device}, its weight on {weight.device}")


def check_streams(who: str, argument: str, streams: Sequence[int]) -> None:
    for stream in streams:
        if not 0 <= stream < 2**32:
            raise ValueError(f"{who}: {argument} must be between 0 and 2**32 - 1, got {stream}")


def check_logits(who: str, logits: Sequence[Tensor]) -> None:
    for index, logit in enumerate(logits):
        if not logit.is_floating_point():
            raise TypeError(f"{who}: logits[{index}] must be a floating tensor, got {logit.dtype}")


def check_tally(who: str, tally: Tensor | None, weights: int) -> None:
    if tally is not None and tally.dtype != torch.float32:
        raise TypeError(f"{who}: tally must be float32, got {tally.dtype}")
    if tally is not None and tally.shape != (weights,):
        raise ValueError(f"{who}: tally must have shape [{weights}], one per weight, got {list(tally.shape)}")


def check_widths(who: str, widths: Tensor, count: int, group_size: int) -> None:
    check_group_size(who, group_size)
    if count < 0:
        raise ValueError(f"{who}: count must not be negative, got {count}")
    if widths.dtype != torch.uint8:
        raise TypeError(f"{who}: widths must be uint8, got {widths.dtype}")
    groups = group_count(count, group_size)
    if widths.shape != (groups,):
        raise ValueError(f"{who}: widths must have shape [{groups}], one per group, got {list(widths.shape)}")
    check_has_values(who, "widths", widths)
    if groups and not torch.compiler.is_compiling():  # a graph cannot look at values
        lowest, highest = (int(bound) for bound in widths.aminmax())
        if lowest < 1 or highest > MAX_WIDTH:
            found = lowest if lowest < 1 else highest
            raise ValueError(f"{who}: bits must be between 1 and {MAX_WIDTH}, got {found}")


def check_ranges(who: str, found: Tensor, counts: Sequence[int], group_size: int, range_scope: str) -> None:
    per_group = is_per_group(who, range_scope)
    rows = sum(group_count(count, group_size) for count in counts) if per_group else len(counts)
    if found.dtype != torch.float32 or found.shape != (rows, 2):
        raise ValueError(f"{who}: range must be float32 [{rows}, 2], got {found.dtype} {list(found.shape)}")


def check_export(who, tensors, widths, found, group_size, range_scope) -> None:
    check_group_size(who, group_size)
    check_per_group_lists(who, "widths", tensors, widths, group_size)
    for tensor, width in zip(tensors, widths, strict=True):
        check_widths(who, width, tensor.numel(), group_size)
    check_ranges(who, found, [tensor.numel() for tensor in tensors], group_size, range_scope)
    if tensors and found.device != tensors[0].device:
        raise ValueError(f"{who}: range is on {found.device}, the weights are on {tensors[0].device}")


def check_levels(who: str, levels: Tensor, widths: Tensor, group_size: int) -> None:
    flat = levels.reshape(-1)
    check_has_values(who, "levels", levels)
    check_device(who, "widths", widths, levels.device)
    if not flat.numel():
        return
    lowest, highest = (int(bound) for bound in flat.aminmax())
    if lowest < 0:
        raise ValueError(f"{who}: levels must not be negative, found {lowest}")
    if highest < 2 ** int(widths.min()):
        return
    too_large = (flat >> per_element(widths.to(torch.int32), flat.numel(), group_size)) != 0
    if bool(too_large.any()):
        at = int(too_large.to(torch.uint8).argmax())
        width = int(widths[at // group_size if group_size else 0])
        raise ValueError(f"{who}: level {int(flat[at])} of element {at} does not fit its group's {width} bits")


def level_counts(widths: Tensor, count: int, group_size: int, count_widths: CountWidths) -> list[int]:
    """How many of ``count`` levels have 0, 1 … 16 bits."""
    groups = count_widths(widths).tolist()
    levels = [number * (group_size or count) for number in groups]
    if count:
        levels[int(widths[-1])] -= len(widths) * (group_size or count) - count
    return levels


def word_count(widths: Tensor, count: int, group_size: int, count_widths: CountWidths) -> int:
    """32-bit words of a packed weight: the sum over widths b of ``stream_words(levels of width b, b)``."""
    levels = level_counts(widths, count, group_size, count_widths)
    return sum(stream_words(number, width) for width, number in enumerate(levels))


def check_words(
    who: str, words: Tensor, widths: Tensor, count: int, group_size: int, count_widths: CountWidths
) -> None:
    if words.dtype != torch.int32 or words.dim() != 1:
        raise TypeError(f"{who}: words must be a flat int32 tensor, got {words.dtype} {list(words.shape)}")
    check_widths(who, widths, count, group_size)
    expected = word_count(widths, count, group_size, count_widths)
    check_device(who, "widths", widths, words.device)
    if words.numel() != expected:
        raise ValueError(
            f"{who}: expected {expected} packed words for {count} levels in {len(widths)} groups, got {words.numel()}"
        )


def check_output_dtype(who: str, dtype: torch.dtype) -> None:
    if not dtype.is_floating_point:
        raise TypeError(f"{who}: dtype must be a floating dtype, got {dtype}")
