"""A weight whose levels are entropy coded: signed levels with a step for each group, or a packed weight's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..quantizers.export import ExportedWeight
from ..reference.classes import choose_classes
from ..reference.even_levels import dequantize_evenly
from ..reference.groups import per_element
from ..reference.level_code import CodeError
from ..reference.log_steps import HIGHEST_STEP_CODE, LOWEST_STEP_CODE
from ..reference.sizes import ELEMENTS_PER_WORD, group_count
from .ranges import ShortRanges
from .tensor import PackedTensor, check_packable, pack_exported, range_bits
from .widths import encode_widths, stream_levels

MOST_LEVEL = (1 << 15) - 1
MENTION = 32  # bytes that the header takes to say that a weight is coded
CODINGS = ("auto", "fixed", "coded")


@dataclass(frozen=True)
class CodedTensor:
    """A weight in coded form; the counterpart of :class:`PackedTensor`, whose other fields it has.

    coded: int16 `[words]`, read as uint16: streams, docs/packed_format.md, section 10.
    widths: uint8 `[groups]`, each 1 … 16; for range_scope "steps" the groups' classes.
    ranges: as in PackedTensor; for "steps" empty: the steps are among the streams.
    """

    coded: Tensor
    widths: Tensor
    ranges: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    group_size: int
    range_scope: str = "steps"
    level_count: int | None = None
    short: ShortRanges | None = None

    def unpack(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight `[*shape]` in float32, then cast to `dtype` (or its own): level * step, or as a PackedTensor's."""
        dtype = dtype or self.dtype
        levels = self.levels()
        if self.range_scope == "steps":
            steps = per_element(self.steps(), self.count, self.group_size).reshape(self.shape)
            return (levels.to(torch.float32) * steps).to(dtype)
        if self.range_scope == "scale":
            half = 1 << (int(self.widths[0]) - 1) if self.count else 0
            return ((levels - half).to(torch.float32) * self.ranges.reshape(())).to(dtype)
        if self.level_count is not None:
            count = self.ranges.new_tensor(float(self.level_count))
            return dequantize_evenly(levels, count, self.ranges[0], self.ranges[1], torch.float32).to(dtype)
        return functional.dequantize(
            [levels],
            [self.widths],
            self.ranges.reshape(-1, 2),
            group_size=self.group_size,
            range_scope=self.range_scope,
            dtype=dtype,
        )[0]

    def levels(self) -> Tensor:
        """int32 `[*shape]`: signed for "steps", from 0 on for the others."""
        decoded = {width: self._decoded(width, words, count) for width, words, count in self.streams()}
        if len(decoded) == 1:
            return decoded.popitem()[1].reshape(self.shape)
        levels = torch.empty(self.count, dtype=torch.int32, device=self.coded.device)
        whole = self.group_size > 0 and self.count % self.group_size == 0
        class_of = self.widths if whole else per_element(self.widths, self.count, self.group_size)
        rows = levels.view(-1, self.group_size) if whole else levels
        for width, values in decoded.items():
            rows[class_of == width] = values.view(-1, self.group_size) if whole else values
        return levels.reshape(self.shape)

    def _decoded(self, width: int, words: Tensor, count: int) -> Tensor:
        values = functional.decode_levels(words, count)
        if self.range_scope == "steps":
            return values
        lowest, highest = values.aminmax()
        half = 1 << (width - 1)
        if int(lowest) < -half or int(highest) >= half:
            raise CodeError(f"a level is beyond the {width} bits of its group")
        return values.add_(half)

    def steps(self) -> Tensor:
        """float32 `[groups]`, for range_scope "steps"."""
        return functional.steps_from_codes(self.step_codes())

    def step_codes(self) -> Tensor:
        """int16 `[groups]`, for range_scope "steps"."""
        if self.range_scope != "steps":
            raise ValueError(f"step_codes: expected a weight with steps, this one has range_scope={self.range_scope!r}")
        groups = len(self.widths)
        if not groups:
            return torch.empty(0, dtype=torch.int16, device=self.coded.device)
        codes = functional.decode_levels(self.coded[: self._places[0]], groups)
        if int(codes.min()) < LOWEST_STEP_CODE or int(codes.max()) > HIGHEST_STEP_CODE:
            raise CodeError(f"a step code is not between {LOWEST_STEP_CODE} and {HIGHEST_STEP_CODE}")
        return codes.to(torch.int16)

    def least_widths(self) -> Tensor:
        """uint8 `[groups]`, for range_scope "steps": the fewest bits that hold each group's signed levels."""
        size = max(min(self.group_size or self.count, self.count), 1)
        flat = self.levels().reshape(-1)
        rows = torch.nn.functional.pad(flat, (0, -self.count % size)).view(-1, size)
        return least_widths(rows)

    def streams(self) -> Iterator[tuple[int, Tensor, int]]:
        """(width or class, words, number of levels) of the streams of levels."""
        counts = self._counts
        for place, end, width in zip(self._places, self._places[1:], counts, strict=False):
            yield width, self.coded[place:end], counts[width]

    @cached_property
    def _counts(self) -> dict[int, int]:
        """Levels by width, of those that occur."""
        counts = stream_levels(self.widths.cpu().numpy(), self.count, self.group_size)
        return {width: count for width, count in enumerate(counts) if count}

    @cached_property
    def _places(self) -> list[int]:
        """Where the streams of levels begin, and where the last one ends."""
        place, places = 0, []
        if self.range_scope == "steps" and self.count:
            place = functional.stream_size(self.coded, len(self.widths))
        for count in self._counts.values():
            places.append(place)
            place += functional.stream_size(self.coded[place:], count)
        return [*places, place]

    def check(self) -> None:
        """Raise ValueError where the streams are not exactly as long as `coded`, which is not decoded."""
        if self.count > ELEMENTS_PER_WORD * len(self.coded):
            raise CodeError(f"{2 * len(self.coded):,} coded bytes cannot hold {self.count:,} levels")
        end = self._places[-1]
        expected = max(end, -(-self.count // ELEMENTS_PER_WORD))
        if len(self.coded) != expected or bool(self.coded[end:].any()):
            raise CodeError(f"expected {2 * expected:,} coded bytes for {self.count:,} levels")

    def to(self, device: torch.device | str) -> CodedTensor:
        """The same with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("coded", "widths", "ranges")}
        return replace(self, **moved, short=self.short and self.short.to(device))

    @property
    def count(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)

    @property
    def size(self) -> dict[str, int]:
        """Bits in memory by purpose: "levels" (steps too), "widths" (not coded yet: 8 per group), "ranges"."""
        return {
            "levels": 16 * self.coded.numel(),
            "widths": 8 * self.widths.numel(),
            "ranges": range_bits(self.ranges, self.short),
        }

    @property
    def nbytes(self) -> int:
        """Bytes that the weight's tensors take in a file, exactly; the header's text about them is not among them."""
        ranges = range_bits(self.ranges, self.short) // 8
        return 2 * self.coded.numel() + len(encode_widths(self.widths.cpu().numpy())[1]) + ranges


def least_widths(levels: Tensor) -> Tensor:
    """uint8 ``[...]``: the fewest bits w that hold signed levels ``[..., count]``: -2**(w - 1) … 2**(w - 1) - 1."""
    lowest, highest = levels.amin(-1), levels.amax(-1)
    most = torch.maximum(-lowest, highest + 1)
    return (torch.ceil(torch.log2(most.clamp(min=1).double())) + 1).to(torch.uint8)


def code_levels(
    levels: Tensor,
    step_codes: Tensor,
    *,
    group_size: int,
    dtype: torch.dtype = torch.float32,
    classes: Tensor | None = None,
    name: str = "weight",
) -> CodedTensor:
    """A coded weight ``levels * 2 ** (step_codes / 16)``.

    Args:
        levels: integers of the weight's shape, -32767 … 32767; 0 is exactly the weight 0.
        step_codes: integers `[groups]`, -1600 … 1599, as ``functional.codes_from_steps`` gives them.
        group_size: elements per group of the row-major flattening, 0 for one; the last may be shorter.
        dtype: of the float weight.
        classes: uint8 `[groups]`, 1 … 16: groups with one table. Chosen by the levels when left out.
        name: what errors call the weight.

    Raises:
        ValueError: levels or step codes beyond their bounds, or not one code for each group. TypeError: no integers.

    >>> weight = code_levels(torch.tensor([-1, 0, 3]), torch.tensor([-16]), group_size=0)
    >>> weight.unpack()
    tensor([-0.5000,  0.0000,  1.5000])
    """
    check_packable("code_levels", name, levels, dtype)
    groups = group_count(levels.numel(), group_size)
    for what, each, low, high, shape in (
        ("levels", levels, -MOST_LEVEL, MOST_LEVEL, tuple(levels.shape)),
        ("step_codes", step_codes, LOWEST_STEP_CODE, HIGHEST_STEP_CODE, (groups,)),
    ):
        if each.is_floating_point() or each.is_complex() or each.dtype == torch.bool:
            raise TypeError(f"code_levels: {name}: {what} must be integers, got {each.dtype}")
        if tuple(each.shape) != shape:
            raise ValueError(f"code_levels: {name}: expected {what} of shape {list(shape)}, got {list(each.shape)}")
        if each.numel() and not low <= int(each.min()) <= int(each.max()) <= high:
            raise ValueError(f"code_levels: {name}: {what} must be between {low} and {high}, found {_extreme(each)}")
    flat = levels.detach().reshape(-1)
    widths = choose_classes(flat, group_size) if classes is None else classes
    streams = [functional.encode_levels(step_codes.detach())] if groups else []
    coded = _join(streams + [functional.encode_levels(part) for _, part in _parts(flat, widths, group_size)], flat)
    empty = torch.empty(0, dtype=torch.float32, device=levels.device)
    return CodedTensor(coded, widths, empty, tuple(levels.shape), dtype, group_size)


def code_packed(packed: PackedTensor) -> CodedTensor:
    """A packed weight with its levels coded; it unpacks to the same bits."""
    levels = functional.unpack(packed.words, packed.widths, packed.count, group_size=packed.group_size)
    parts = _parts(levels, packed.widths, packed.group_size)
    coded = _join([functional.encode_levels(part - (1 << (width - 1))) for width, part in parts], levels)
    fields = packed.ranges, packed.shape, packed.dtype, packed.group_size, packed.range_scope, packed.level_count
    return CodedTensor(coded, packed.widths, *fields, packed.short)


def with_coding(packed: PackedTensor, coding: str) -> PackedTensor | CodedTensor:
    """The weight as it is for "fixed", coded for "coded", and whichever is smaller for "auto"."""
    if coding == "fixed":
        return packed
    coded = code_packed(packed)
    smaller = 2 * len(coded.coded) + MENTION < 4 * len(packed.words)
    return coded if coding == "coded" or smaller else packed


def code_exported(weights: Iterable[ExportedWeight], coding: str) -> dict[str, PackedTensor | CodedTensor]:
    """What a quantizer exports, by name: weights with steps coded, all others as ``coding`` says."""
    made: dict[str, PackedTensor | CodedTensor] = {}
    for each in weights:
        if each.range_scope == "steps" and each.levels is not None and each.ranges is not None:
            size, dtype = int(each.group_size), each.weight.dtype
            options: dict[str, Any] = {"group_size": size, "dtype": dtype, "classes": each.widths, "name": each.name}
            made[each.name] = code_levels(each.levels, each.ranges, **options)
        else:
            made[each.name] = with_coding(pack_exported([each])[each.name], coding)
    return made


def _parts(flat: Tensor, widths: Tensor, group_size: int) -> Iterator[tuple[int, Tensor]]:
    """(width or class, its levels in order) for each that occurs."""
    present = widths.unique().tolist() if flat.numel() else []
    if len(present) == 1:
        yield present[0], flat
        return
    whole = group_size > 0 and flat.numel() % group_size == 0
    width_of = widths if whole else per_element(widths, flat.numel(), group_size)
    rows = flat.view(-1, group_size) if whole else flat
    for width in present:
        yield width, rows[width_of == width].reshape(-1)


def _join(streams: list[Tensor], flat: Tensor) -> Tensor:
    """The streams one behind the other, and zeros up to the fewest words that so many levels may have."""
    missing = -(-flat.numel() // ELEMENTS_PER_WORD) - sum(len(stream) for stream in streams)
    return torch.cat([*streams, torch.zeros(max(missing, 0), dtype=torch.int16, device=flat.device)])


def _extreme(values: Tensor) -> int:
    lowest, highest = int(values.min()), int(values.max())
    return highest if highest > -lowest else lowest
