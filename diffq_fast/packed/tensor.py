"""One quantised weight in packed form: what stands between a float weight and a packed file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import functional
from .._checks import check_has_values
from ..reference.even_levels import dequantize_evenly

PACKABLE = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PackedTensor:
    """A weight's levels, packed group by group with each group's own width.

    words: int32 `[words]`, read as uint32; docs/packed_format.md defines their bits.
    widths: uint8 `[groups]`, each 1 … 16.
    range: float32 (lo, hi), `[2]`, or `[groups, 2]` for range_scope "group", or the scale, `[1]`, for "scale".
    shape, dtype: of the float weight. group_size: elements per group, 0 for one; the last may be shorter.
    """

    words: Tensor
    widths: Tensor
    range: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    group_size: int
    range_scope: str = "tensor"
    level_count: int | None = None

    def unpack(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight `[*shape]` in float32, then cast to `dtype` (or its own).

        level * u * (hi - lo) + lo, u = 1 / (2**width - 1), or 1 / (level_count - 1) where there is a count; for
        range_scope "scale" (level - 2**(width - 1)) * scale.
        """
        dtype = dtype or self.dtype
        if self.range_scope == "scale" or self.level_count is not None:
            levels = functional.unpack(self.words, self.widths, self.count, group_size=self.group_size)
            return self._weight(levels.reshape(self.shape)).to(dtype)
        return functional.unpack_dequantize(
            self.words,
            self.widths,
            self.range.reshape(-1, 2),
            self.shape,
            group_size=self.group_size,
            range_scope=self.range_scope,
            dtype=dtype,
        )

    def _weight(self, levels: Tensor) -> Tensor:
        if self.range_scope == "scale":
            half = 1 << (int(self.widths[0]) - 1) if self.count else 0
            return (levels - half) * self.range.reshape(())  # a scalar weight stays one
        count = self.range.new_tensor(float(self.level_count or 0))
        return dequantize_evenly(levels, count, self.range[0], self.range[1], torch.float32)

    def to(self, device: torch.device | str) -> PackedTensor:
        """The same with words, widths and range on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("words", "widths", "range")}
        return replace(self, **moved)

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
            "ranges": 32 * self.range.numel(),
        }


def pack_weight(
    weight: Tensor,
    widths: Tensor,
    *,
    group_size: int = 8,
    range_scope: str = "tensor",
    found: Tensor | None = None,
    name: str = "weight",
) -> PackedTensor:
    """Quantise and pack a weight.

    Args:
        weight: float32, float16 or bfloat16, any shape, on any device.
        widths: uint8 `[groups]` on the weight's device: the bits of each group, 1 … 16.
        group_size: elements per group of the row-major flattening, 0 for one; the last may be shorter.
        range_scope: "tensor" for one (lo, hi), "group" for one per group.
        found: the weight's range as `functional.weight_range` gives it, where it is known already.
        name: what errors call the weight.

    Raises:
        ValueError: a NaN or infinite element, a range beyond float32, or widths that do not fit the weight.
        TypeError: a dtype that the file does not know.

    >>> widths = torch.tensor([2], dtype=torch.uint8)
    >>> pack_weight(torch.tensor([0.0, 1.0, 3.0]), widths, group_size=0).unpack()
    tensor([0., 1., 3.])
    """
    _check_dtype("pack_weight", weight.dtype, name)
    check_has_values("pack_weight", name, weight)
    with torch.no_grad():
        weight = weight.detach()
        if found is None:
            found = functional.weight_range([weight], group_size=group_size, range_scope=range_scope)
        _check_range(found, name)
        words = functional.quantize_pack(weight, widths, found, group_size=group_size, range_scope=range_scope)
    ranges = found.reshape(-1) if range_scope == "tensor" else found
    return PackedTensor(words, widths, ranges, tuple(weight.shape), weight.dtype, group_size, range_scope)


def pack_levels(
    levels: Tensor,
    width: int,
    found: Tensor,
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
        found: float32 (lo, hi) for range_scope "tensor", one scale for "scale".
        dtype: of the float weight.
        level_count: levels that there are between lo and hi, if not 2**width: at most as many.
        name: what errors call the weight.

    Raises:
        ValueError: levels that do not fit, or a range or scale that is not finite. TypeError: see `pack_weight`.
    """
    _check_dtype("pack_levels", dtype, name)
    check_has_values("pack_levels", name, levels)
    check_has_values("pack_levels", f"the range of {name}", found)
    expected = 2 if range_scope == "tensor" else 1
    if found.numel() != expected:
        raise ValueError(f"pack_levels: {name}: expected a range of {expected} numbers, got {list(found.shape)}")
    if range_scope == "tensor":
        _check_range(found.reshape(-1, 2), name)
    elif not bool(torch.isfinite(found).all()):
        raise ValueError(
            f"pack_levels: {name}: expected a finite scale, found {found.tolist()}; repair the weight first"
        )
    if level_count == 1 << width:
        level_count = None
    with torch.no_grad():
        widths = torch.full((min(levels.numel(), 1),), width, dtype=torch.uint8, device=levels.device)
        words = functional.pack(levels, widths, group_size=0)
        found = found.detach().to(torch.float32).reshape(-1)
    return PackedTensor(words, widths, found, tuple(levels.shape), dtype, 0, range_scope, level_count)


def _check_dtype(who: str, dtype: torch.dtype, name: str) -> None:
    if dtype not in PACKABLE:
        expected = "float32, float16 or bfloat16"
        raise TypeError(f"{who}: {name}: expected {expected}, got {dtype}; convert the model first")


def _check_range(found: Tensor, name: str) -> None:
    """A NaN or infinity anywhere in the weight shows in its range: the weight need not be read again."""
    if not bool(torch.isfinite(found).all()):
        raise ValueError(
            f"pack_weight: {name}: expected finite elements, found NaN or infinity; repair the weight first"
        )
    if not bool(torch.isfinite(found[:, 1] - found[:, 0]).all()):
        span = f"from {found[:, 0].min().item():g} to {found[:, 1].max().item():g}"
        raise ValueError(f"pack_weight: {name}: its elements reach {span}, further apart than float32 can hold")
