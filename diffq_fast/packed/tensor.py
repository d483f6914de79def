"""One quantised weight in packed form: what stands between a float weight and a packed file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..quantizers.export import ExportedWeight
from ..reference.even_levels import dequantize_evenly
from ..reference.quantize import PACKABLE
from ..reference.sizes import MOST_GROUPS_PER_UNIT
from .ranges import RangeOptions, ShortRanges, fit_ranges


@dataclass(frozen=True)
class PackedTensor:
    """A weight's levels, packed group by group with each group's own width.

    words: int32 `[words]`, read as uint32; docs/packed_format.md defines their bits.
    widths: uint8 `[groups]`, each 1 … 16.
    ranges: float32 (lo, hi), `[2]`, or `[groups, 2]` for range_scope "group", or the scale, `[1]`, for "scale".
    shape, dtype: of the float weight. group_size: elements per group, 0 for one; the last may be shorter.
    short: how a file keeps the ranges of groups, where it does so in 16 bits; `ranges` are what they come to.
    """

    words: Tensor
    widths: Tensor
    ranges: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    group_size: int
    range_scope: str = "tensor"
    level_count: int | None = None
    short: ShortRanges | None = None

    def unpack(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight `[*shape]` in float32, then cast to `dtype` (or its own).

        level * u * (hi - lo) + lo, u = 1 / (2**width - 1), or 1 / (level_count - 1) where there is a count; for
        range_scope "scale" (level - 2**(width - 1)) * scale.
        """
        dtype, widths, group_size = dtype or self.dtype, self.widths, self.group_size
        if self.range_scope != "group" and len(widths) > 1 and widths.stride() == (0,):  # one for all, as read
            widths, group_size = widths[:1], 0
        if self.range_scope == "scale" or self.level_count is not None:
            levels = functional.unpack(self.words, widths, self.count, group_size=group_size)
            return self._weight(levels.reshape(self.shape)).to(dtype)
        return functional.unpack_dequantize(
            self.words,
            widths,
            self.ranges.reshape(-1, 2),
            self.shape,
            group_size=group_size,
            range_scope=self.range_scope,
            dtype=dtype,
        )

    def _weight(self, levels: Tensor) -> Tensor:
        if self.range_scope == "scale":
            half = 1 << (int(self.widths[0]) - 1) if self.count else 0
            return (levels - half).to(torch.float32) * self.ranges.reshape(())  # a scalar weight stays one
        count = self.ranges.new_tensor(float(self.level_count or 0))
        return dequantize_evenly(levels, count, self.ranges[0], self.ranges[1], torch.float32)

    def to(self, device: torch.device | str) -> PackedTensor:
        """The same with words, widths and ranges on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("words", "widths", "ranges")}
        return replace(self, **moved, short=self.short and self.short.to(device))

    @property
    def count(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)

    @property
    def size(self) -> dict[str, int]:
        """Bits in memory by purpose: "levels", "widths" (not coded yet: 8 per group), "ranges"."""
        return {
            "levels": 32 * self.words.numel(),
            "widths": 8 * self.widths.numel(),
            "ranges": range_bits(self.ranges, self.short),
        }


def range_bits(ranges: Tensor, short: ShortRanges | None) -> int:
    """Bits that a file has for a weight's ranges."""
    return 32 * ranges.numel() if short is None else 8 * short.data().numel()


def pack_weight(
    weight: Tensor,
    widths: Tensor,
    *,
    group_size: int = 8,
    range_scope: str = "tensor",
    ranges: Tensor | None = None,
    name: str = "weight",
    options: RangeOptions | None = None,
) -> PackedTensor:
    """Quantise and pack a weight.

    Args:
        weight: float32, float16 or bfloat16, any shape, on any device.
        widths: uint8 `[groups]` on the weight's device: the bits of each group, 1 … 16.
        group_size: elements per group of the row-major flattening, 0 for one; the last may be shorter.
        range_scope: "tensor" for one (lo, hi), "group" for one per group.
        ranges: the weight's, as `functional.weight_range` gives them, where they are known already.
        name: what errors call the weight.
        options: clip the ranges where that lowers the squared error, keep those of groups in 16 bits.

    Raises:
        ValueError: a NaN or infinite element, a range beyond float32, or widths that do not fit the weight.
        TypeError: a dtype that the file does not know.

    >>> widths = torch.tensor([2], dtype=torch.uint8)
    >>> pack_weight(torch.tensor([0.0, 1.0, 3.0]), widths, group_size=0).unpack()
    tensor([0., 1., 3.])
    """
    check_packable("pack_weight", name, weight, weight.dtype)
    with torch.no_grad():
        weight = weight.detach()
        if ranges is None:
            ranges = functional.weight_range([weight], group_size=group_size, range_scope=range_scope)
        _check_ranges(ranges, name)
        short = None
        if options is not None and weight.numel():
            _check_options(options, range_scope, name)
            ranges, short = fit_ranges(weight, widths, ranges, (group_size, range_scope), options)
            _check_ranges(ranges, name)
        words = functional.quantize_pack(weight, widths, ranges, group_size=group_size, range_scope=range_scope)
    kept = ranges.reshape(-1) if range_scope == "tensor" else ranges
    shape, dtype = tuple(weight.shape), weight.dtype
    return PackedTensor(words, widths, kept, shape, dtype, group_size, range_scope, short=short)


def pack_levels(
    levels: Tensor,
    width: int,
    ranges: Tensor,
    *,
    dtype: torch.dtype,
    range_scope: str = "tensor",
    level_count: int | None = None,
    name: str = "weight",
) -> PackedTensor:
    """Pack levels that were made in another way than :func:`pack_weight` makes them, all of one width.

    Args:
        levels: int32, the weight's shape, 0 … 2**width - 1, or below `level_count`.
        width: bits of a level, 1 … 16.
        ranges: float32 (lo, hi) for range_scope "tensor", one scale for "scale".
        dtype: of the float weight.
        level_count: how many levels there are between lo and hi, if not 2**width: at most as many.
        name: what errors call the weight.

    Raises:
        ValueError: levels that do not fit, or a range or scale that is not finite. TypeError: see `pack_weight`.
    """
    check_packable("pack_levels", name, levels, dtype)
    check_packable("pack_levels", f"the range of {name}", ranges, dtype)
    expected = 2 if range_scope == "tensor" else 1
    if ranges.numel() != expected:
        raise ValueError(f"pack_levels: {name}: expected a range of {expected} numbers, got {list(ranges.shape)}")
    if range_scope == "tensor":
        _check_ranges(ranges.reshape(-1, 2), name)
    elif not bool(torch.isfinite(ranges).all()):
        raise ValueError(
            f"pack_levels: {name}: expected a finite scale, found {ranges.tolist()}; repair the weight first"
        )
    if level_count == 1 << width:
        level_count = None
    with torch.no_grad():
        widths = torch.full((min(levels.numel(), 1),), width, dtype=torch.uint8, device=levels.device)
        words = functional.pack(levels, widths, group_size=0)
        ranges = ranges.detach().to(torch.float32).reshape(-1)
    return PackedTensor(words, widths, ranges, tuple(levels.shape), dtype, 0, range_scope, level_count)


def pack_exported(weights: Iterable[ExportedWeight]) -> dict[str, PackedTensor]:
    """What a quantizer exports, in packed form, by name. Raises like :func:`pack_weight` and :func:`pack_levels`."""
    packed = {}
    for each in weights:
        options: dict[str, Any] = {"range_scope": each.range_scope, "name": each.name}
        if each.levels is None or each.ranges is None:
            widths, group_size = each.widths.to(each.weight.device), int(each.group_size)
            packed[each.name] = pack_weight(each.weight, widths, group_size=group_size, ranges=each.ranges, **options)
            if each.short is not None:
                packed[each.name] = replace(packed[each.name], short=ShortRanges(*each.short))
        else:
            options |= {"dtype": each.weight.dtype, "level_count": each.level_count}
            packed[each.name] = pack_levels(each.levels, int(each.widths[0]), each.ranges, **options)
    return packed


def check_packable(who: str, name: str, values: Tensor, dtype: torch.dtype) -> None:
    if dtype not in PACKABLE:
        expected = "float32, float16 or bfloat16"
        raise TypeError(f"{who}: {name}: expected {expected}, got {dtype}; convert the model first")
    if values.is_meta:
        raise ValueError(f"{who}: {name} must hold values, got a meta tensor")


def _check_options(options: RangeOptions, range_scope: str, name: str) -> None:
    if not 0 <= options.groups_per_unit <= MOST_GROUPS_PER_UNIT:
        expected = f"groups_per_unit from 0 to {MOST_GROUPS_PER_UNIT:,}"
        raise ValueError(f"pack_weight: {name}: expected {expected}, got {options.groups_per_unit}")
    if options.groups_per_unit and range_scope != "group":
        raise ValueError(f"pack_weight: {name}: ranges in 16 bits are those of groups, got range_scope={range_scope!r}")


def _check_ranges(ranges: Tensor, name: str) -> None:
    """A NaN or infinity anywhere in the weight shows in its range: the weight need not be read again."""
    if not bool(torch.isfinite(ranges).all()):
        raise ValueError(
            f"pack_weight: {name}: expected finite elements, found NaN or infinity; repair the weight first"
        )
    if not bool(torch.isfinite(ranges[:, 1] - ranges[:, 0]).all()):
        span = f"from {ranges[:, 0].min().item():g} to {ranges[:, 1].max().item():g}"
        raise ValueError(f"pack_weight: {name}: its elements reach {span}, further apart than float32 can hold")
