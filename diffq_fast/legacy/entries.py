"""One quantised weight as diffq stores it: DiffQ, Uniform and LSQ, packed and unpacked.

Entries are tuples; in selection order they make up ``state["quantized"]`` of :mod:`diffq_fast.legacy.state`:

    DiffQ      (levels [groups, g] uint8 or int16, (lo, hi), widths uint8 [groups])
      packed   ([planes of width 1, 2, … 14, each or None], (lo, hi), planes of widths - base)
    Uniform    (levels like the weight uint8 or int16, (lo, hi))
      packed   (planes of levels, (lo, hi))
    LSQ        (indices like the weight int16, scale float32 0-dim)
      packed   (planes of indices + 2**(bits - 1), scale)

Planes are those of :mod:`diffq_fast.bitpack` (int64, three dimensions) or, with ``torch_pack``, of
:mod:`diffq_fast.torch_pack` (two dimensions); a reader tells them by their dimensions. Three choices of ours,
which diffq 0.2.4 reads back correctly:

* width 15 is a 15th list entry (diffq itself forgets those groups);
* ``base`` is the whole number below ``min_bits`` (:func:`width_base`), so that the differences are whole;
* differences below zero (negative ``extra_bits``) are written as 16-bit two's complement: 16 planes.

Decoding believes nothing: shapes, widths, levels and ranges are checked before anything is computed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functional import pack_planes
from .fields import (
    MAX_STORED_WIDTH,
    check_bits,
    check_levels,
    check_widths,
    is_packed,
    pack_field,
    read_integers,
    read_like_weight,
    read_number,
    read_parts,
    read_range,
    unpack_field,
    whole_groups,
)

_DIFFQ_WIDTHS = 14  # entries of the list that diffq writes


class DiffQEntry(NamedTuple):
    """levels int32 of the weight's shape, widths uint8 [groups], ranges (lo, hi)."""

    levels: Tensor
    widths: Tensor
    ranges: tuple[float, float]


class UniformEntry(NamedTuple):
    """levels int32 of the weight's shape, ranges (lo, hi)."""

    levels: Tensor
    ranges: tuple[float, float]


class LSQEntry(NamedTuple):
    """indices int32 of the weight's shape, -2**(bits - 1) … 2**(bits - 1) - 1; scale float32, 0-dim."""

    indices: Tensor
    scale: Tensor


def width_base(min_bits: float) -> int:
    """What is subtracted from the widths in a packed table: ``min_bits``, or the whole number below it, at least 1."""
    return max(1, math.floor(min_bits))


def encode_diffq_entry(
    levels: Tensor,
    widths: Tensor,
    ranges: tuple[float, float],
    *,
    min_bits: float,
    packed: bool = True,
    torch_pack: bool = False,
    name: str = "weight",
) -> tuple:
    """The entry of one weight.

    Args:
        levels: int32, ``[groups, g]`` or the weight's shape; ``0 <= level < 2**width`` of its group.
        widths: uint8 ``[groups]``, each 1 … 15.
        ranges: the weight's (lo, hi).
        min_bits: the quantizer's; only a packed table of widths depends on it.
        packed, torch_pack: the form.
        name: of the parameter, for messages.

    Raises:
        ValueError: a ragged last group, a width outside 1 … 15, or a level that does not fit its width.
    """
    widths = widths.detach().cpu()
    groups = widths.numel()
    if groups == 0 or levels.numel() % groups:
        raise ValueError(
            f"legacy state: {name}: expected whole groups, got {levels.numel()} levels in {groups} "
            "groups; diffq's states have no ragged last group: use a group_size that divides, "
            "or the native format"
        )
    by_group = levels.detach().cpu().reshape(groups, -1)
    check_widths(name, widths)
    check_levels(name, by_group, widths[:, None])
    if not packed:
        dtype = torch.uint8 if int(widths.max()) <= 8 else torch.int16
        return by_group.to(dtype, copy=True), _as_floats(ranges), widths.clone()
    planes = [_pack_width(by_group, widths, width, torch_pack) for width in range(1, MAX_STORED_WIDTH + 1)]
    return _packed_diffq_entry(planes, widths, ranges, min_bits, torch_pack, name)


def encode_diffq_planes(
    planes: Sequence[Tensor], widths: Tensor, ranges: tuple[float, float], *, min_bits: float, name: str = "weight"
) -> tuple:
    """The packed entry of one weight from its planes, as ``functional.quantize_planes`` gives them; see
    :func:`encode_diffq_entry` for the rest. Groups must be whole; raises ValueError for a width outside 1 … 15.
    """
    widths = widths.detach().cpu()
    check_widths(name, widths)
    kept = [each.cpu() if len(each) else None for each in planes[:MAX_STORED_WIDTH]]
    return _packed_diffq_entry(kept, widths, ranges, min_bits, False, name)


def _packed_diffq_entry(
    planes: list[Tensor | None],
    widths: Tensor,
    ranges: tuple[float, float],
    min_bits: float,
    torch_pack: bool,
    name: str,
) -> tuple:
    if planes[-1] is None:
        planes = planes[:_DIFFQ_WIDTHS]
    else:
        warnings.warn(
            f"legacy state: {name}: its groups of 15 bits are written as a 15th list entry; diffq 0.2.4 "
            "reads it, but loses those groups when it saves the state again",
            stacklevel=3,
        )
    return planes, _as_floats(ranges), _pack_widths(widths, width_base(min_bits), torch_pack)


def decode_diffq_entry(
    entry: Any, shape: Sequence[int], *, group_size: int, min_bits: float, name: str = "weight"
) -> DiffQEntry:
    """What one entry holds; its form tells whether it is packed, and by which packer.

    Args:
        entry: as written by diffq (older ones with widths ``[groups, 1]`` too) or :func:`encode_diffq_entry`.
        shape: of the weight.
        group_size: elements per group; 0: one group.
        min_bits: what the quantizer that wrote the entry was given.
        name: of the parameter, for messages.

    Raises:
        ValueError: the entry does not have this form, or does not belong to a weight of this shape.
    """
    stored, pair, table = read_parts(name, entry, 3)
    count = math.prod(shape)
    groups = whole_groups(name, count, group_size)
    ranges = read_range(name, pair)
    if not isinstance(stored, Tensor):
        widths = _unpack_widths(name, table, groups, width_base(min_bits))
        levels = _unpack_all(name, stored, widths, count // groups)
    else:
        widths, levels = read_integers(name, table, "widths"), read_integers(name, stored, "levels")
        if widths.numel() != groups or levels.numel() != count or levels.dim() == 0:
            raise ValueError(
                f"legacy state: {name}: expected {groups} widths and {count} levels for a weight of shape "
                f"{list(shape)} with group_size={group_size}, found {widths.numel()} and {levels.numel()}"
            )
        widths, levels = widths.reshape(groups), levels.reshape(groups, -1)
    check_widths(name, widths)
    check_levels(name, levels, widths[:, None])
    return DiffQEntry(levels.reshape(tuple(shape)).to(torch.int32), widths.to(torch.uint8), ranges)


def _pack_width(by_group: Tensor, widths: Tensor, width: int, rectangle: bool) -> Tensor | None:
    """Planes of all groups of one width, or None when there are none."""
    chosen = by_group[widths == width]
    return pack_field(chosen, width, rectangle) if len(chosen) else None


def _unpack_all(name: str, planes: Any, widths: Tensor, size: int) -> Tensor:
    """Levels int16 ``[groups, size]`` from the list of planes per width."""
    if not isinstance(planes, list | tuple) or not len(planes) <= MAX_STORED_WIDTH:
        raise ValueError(f"legacy state: {name}: expected a list of at most {MAX_STORED_WIDTH} packed tensors or None")
    levels = torch.zeros((len(widths), size), dtype=torch.int16, device="cpu")
    for width in widths.unique().tolist():
        if not 1 <= width <= len(planes) or planes[width - 1] is None:
            lost = "; diffq 0.2.4 does not save groups of 15 bits" if width == MAX_STORED_WIDTH else ""
            raise ValueError(f"legacy state: {name}: has groups of {width} bits, but no levels for them{lost}")
        chosen = widths == width
        number = int(chosen.sum()) * size
        levels[chosen] = unpack_field(name, planes[width - 1], number).view(-1, size)
    return levels


def _pack_widths(widths: Tensor, base: int, rectangle: bool) -> Tensor:
    if int(widths.min()) >= base:
        return pack_field(widths - base, 0, rectangle)
    difference = widths.to(torch.int32) - base
    # diffq's readers add the planes up in int16, where 16 bits of two's complement are the difference again
    twos_complement = difference & 0xFFFF
    if rectangle:
        return pack_planes(twos_complement, 16, rows=16, columns=-(-widths.numel() // 16))[0]
    return pack_planes(twos_complement, 16)


def _unpack_widths(name: str, table: Any, groups: int, base: int) -> Tensor:
    widths = unpack_field(name, table, groups).to(torch.int32) + base
    return widths.clamp(-1, 255)


def _as_floats(ranges: Sequence[float]) -> tuple[float, float]:
    lo, hi = ranges
    return float(lo), float(hi)


def encode_uniform_entry(
    levels: Tensor,
    ranges: tuple[float, float],
    *,
    bits: float,
    packed: bool = True,
    torch_pack: bool = False,
    name: str = "weight",
) -> tuple:
    """The entry of one weight: levels of the weight's shape, ``0 <= level < floor(2**bits)``.

    Fractional ``bits`` take ``ceil(bits)`` planes, so no level is lost (diffq keeps ``floor(bits)``).
    Raises ValueError for bits outside 1 … 15, or a level that does not fit.
    """
    planes = check_bits(name, bits, 1)
    levels = levels.detach().cpu()
    check_levels(name, levels, planes)
    if packed:
        return pack_field(levels, planes, torch_pack), _as_floats(ranges)
    return levels.to(torch.uint8 if bits <= 8 else torch.int16, copy=True), _as_floats(ranges)


def decode_uniform_entry(
    entry: Any, shape: Sequence[int], *, bits: float, packed: bool | None = None, name: str = "weight"
) -> UniformEntry:
    """What one entry holds; with ``packed=None`` its form tells. Errors as in :func:`decode_diffq_entry`."""
    planes = check_bits(name, bits, 1)
    stored, pair = read_parts(name, entry, 2)
    levels = read_like_weight(name, stored, shape, packed)
    check_levels(name, levels, planes)
    return UniformEntry(levels, read_range(name, pair))


def encode_lsq_entry(
    indices: Tensor,
    scale: Tensor,
    *,
    bits: int,
    packed: bool = True,
    torch_pack: bool = False,
    name: str = "weight",
) -> tuple:
    """The entry of one weight: indices of its shape, ``-2**(bits-1) <= index < 2**(bits-1)``, and its scale.

    Raises ValueError for bits outside 2 … 15, or an index that does not fit.
    """
    planes = check_bits(name, bits, 2)
    half = 2 ** (planes - 1)
    shifted = indices.detach().cpu().to(torch.int32) + half
    check_levels(name, shifted, planes)
    scale = torch.as_tensor(scale, dtype=torch.float32, device="cpu").detach().clone().reshape(())
    if packed:
        return pack_field(shifted, 0, torch_pack), scale
    return (shifted - half).to(torch.int16), scale


def decode_lsq_entry(
    entry: Any, shape: Sequence[int], *, bits: int, packed: bool | None = None, name: str = "weight"
) -> LSQEntry:
    """What one entry holds; with ``packed=None`` its form tells. Errors as in :func:`decode_diffq_entry`."""
    planes = check_bits(name, bits, 2)
    stored, scale = read_parts(name, entry, 2)
    half = 2 ** (planes - 1)
    shifted = read_like_weight(name, stored, shape, packed)
    if not is_packed(name, stored, shape, packed):
        shifted += half
    check_levels(name, shifted, planes)
    return LSQEntry(shifted - half, torch.tensor(read_number(name, scale, "scale"), dtype=torch.float32, device="cpu"))
