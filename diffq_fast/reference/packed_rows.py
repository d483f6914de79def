"""The oracle of weights as packed layers keep them in memory: rows of levels that each decode alone.

A row is made of segments of ``segment`` elements. The levels of a segment have one width of 1 to 16 bits, and stand one
after the other in a little-endian run of bits, in as many whole bytes as it needs. A row begins at a multiple of four
bytes. A row's widths are half bytes, width - 1, the first one low, in whole bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .sizes import MAX_WIDTH

ROW_ALIGNMENT = 4  # bytes
READ_BEHIND = 16  # bytes behind the last row, which the core may read
ACTIVATIONS = ("float", "int8")
BLOCK_COLUMNS = 64  # of vectors, that are rounded together
MOST_INT8 = 127
LEAST_BLOCK = 2.0**-100  # a block of smaller values is zero
_ROWS_AT_ONCE = 1 << 20  # elements


class RowForm(NamedTuple):
    """How the rows of a packed weight are cut, and what their levels stand for.

    columns: elements of a row. segment: elements that have one width. group_size: elements of all rows, one after the
    other, that have one scale and offset; 0: all have one. centred: a level stands for ``(level - 2**(width - 1)) *
    scale``, else for ``level * u * scale + offset``. level_count: ``u = 1 / (level_count - 1)``; 0: ``u = 1 /
    (2**width - 1)``.
    """

    columns: int
    segment: int
    group_size: int
    centred: bool
    level_count: int

    @classmethod
    def of(cls, numbers: Sequence[int]) -> RowForm:
        """From the numbers that the operators are given."""
        columns, segment, group_size, centred, level_count = numbers
        return cls(columns, segment, group_size, bool(centred), level_count)

    @property
    def segments(self) -> int:
        """Segments of a row."""
        return -(-self.columns // self.segment)

    @property
    def width_bytes(self) -> int:
        """Bytes of a row's widths."""
        return -(-self.segments // 2)

    def group_count(self, rows: int) -> int:
        """Scales of so many rows."""
        return -(-rows * self.columns // self.group_size) if self.group_size else 1


class PackedRows(NamedTuple):
    """Rows of packed levels.

    data: uint8 ``[bytes]``. starts: int32, read as uint32, ``[rows + 1]``: where each row begins in ``data``, in fours
    of bytes. widths: half bytes, uint8 ``[rows, width_bytes]``. scales, offsets: float32 ``[groups]``, offsets empty
    where levels are centred.
    """

    data: Tensor
    starts: Tensor
    widths: Tensor
    scales: Tensor
    offsets: Tensor
    form: RowForm

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[int]]:
        """As the operators take them."""
        return (*self[:5], [int(each) for each in self.form])


def segment_size(columns: int, group_size: int) -> int:
    """The most elements of a row that lie in one group wherever the row begins; ``group_size`` 0: all do."""
    return math.gcd(columns, group_size) if group_size else columns


def pack_rows(levels: Tensor, widths: Tensor, segment: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of levels, packed.

    Args:
        levels: int32 ``[rows, columns]``, each from 0 to ``2**width - 1``.
        widths: uint8 ``[rows, segments]``, 1 … 16.

    Returns:
        data: uint8; starts: int32, read as uint32, ``[rows + 1]``, where each row begins in it, in fours of bytes; half
        bytes of the widths, uint8 ``[rows, width_bytes]``.
    """
    starts, size = row_starts(widths, levels.shape[1], segment)
    return put_levels(levels, widths, starts, segment, size), starts, half_bytes(widths)


def row_starts(widths: Tensor, columns: int, segment: int) -> tuple[Tensor, int]:
    """Where rows of such widths begin, int32, read as uint32, ``[rows + 1]``, and the bytes of their data."""
    row_sizes = -(-_segment_bytes(widths, columns, segment).sum(1) // ROW_ALIGNMENT)
    starts = torch.nn.functional.pad(row_sizes.cumsum(0), (1, 0))
    total = int(starts[-1]) * ROW_ALIGNMENT
    if total >= ROW_ALIGNMENT << 32:
        raise ValueError(f"pack_rows: expected less than 2**34 bytes of levels, got {total:,}")
    return (starts - (starts >> 31 << 32)).to(torch.int32), total + READ_BEHIND


def put_levels(levels, widths, starts, segment, size):
    """uint8 ``[size]``: the levels, where :func:`row_starts` has their rows."""
    rows, columns = levels.shape
    sizes = _segment_bytes(widths, columns, segment)
    begins = (starts[:-1, None].long() & 0xFFFFFFFF) * ROW_ALIGNMENT + sizes.cumsum(1) - sizes
    data = torch.zeros(size, dtype=torch.uint8, device=levels.device)
    padded = torch.nn.functional.pad(levels, (0, -columns % segment)).view(rows, -1, segment)
    check_levels(levels, widths, segment)
    for width in widths.unique().tolist():
        places = (widths == width).nonzero()
        for some in places.split(max(1, _ROWS_AT_ONCE // segment)):
            row, number = some.unbind(1)
            made = _bytes_of(padded[row, number], width)
            targets = begins[row, number][:, None] + torch.arange(made.shape[1], dtype=torch.int64, device=data.device)
            inside = targets < (begins + sizes)[row, number][:, None]
            data[targets[inside]] = made[inside]
    return data


def check_levels(levels: Tensor, widths: Tensor, segment: int) -> None:
    """ValueError for a width that is none, and a level that is negative or too large for its segment's width."""
    wrong = (widths < 1) | (widths > MAX_WIDTH)
    if bool(wrong.any()):
        raise ValueError(f"pack_rows: widths must be between 1 and {MAX_WIDTH}, found {int(widths[wrong][0])}")
    above = levels >> widths.int().repeat_interleave(segment, 1)[:, : levels.shape[1]]
    if bool(above.any()):
        raise ValueError(f"pack_rows: levels must be from 0 to 2**width - 1, got {int(levels[above != 0][0])}")


def unpack_rows(indices, data, starts, widths, scales, offsets, form):
    """float32 ``[len(indices), columns]``: what the levels of some rows stand for."""
    rows = PackedRows(data, starts, widths, scales, offsets, RowForm.of(form))
    return _checked_rows(indices, rows)


def packed_linear(input, data, starts, widths, scales, offsets, form):
    """``input @ weight.T``, a block of rows at a time; float32 ``[..., rows]``."""
    return multiply(input, PackedRows(data, starts, widths, scales, offsets, RowForm.of(form)), _checked_rows)


def multiply(input: Tensor, rows: PackedRows, decode: Callable[[Tensor, PackedRows], Tensor]) -> Tensor:
    """``input @ weight.T``, a block of rows at a time, which ``decode`` gives; float32 ``[..., rows]``."""
    count, parts = len(rows.starts) - 1, []
    block = max(1, _ROWS_AT_ONCE // rows.form.columns)
    for indices in torch.arange(count, dtype=torch.int64, device=rows.data.device).split(block):
        parts.append(input @ decode(indices, rows).mT)
    return torch.cat(parts, -1) if parts else input.new_empty((*input.shape[:-1], 0))


def decode_rows(indices: Tensor, rows: PackedRows) -> Tensor:
    """:func:`unpack_rows` of rows that lie in their data, and one course of torch's operations whatever is in them."""
    width_of, begins, _ = _segments(indices, rows)
    return _values(indices, rows, width_of, begins)


def _checked_rows(indices: Tensor, rows: PackedRows) -> Tensor:
    if not len(indices):
        return torch.empty((0, rows.form.columns), dtype=torch.float32, device=rows.data.device)
    width_of, begins, sizes = _segments(indices, rows)
    if bool((begins + sizes > len(rows.data)).any()):  # before anything of the size of the rows is made
        raise IndexError("a row is out of bounds")
    return _values(indices, rows, width_of, begins)


def _segments(indices: Tensor, rows: PackedRows) -> tuple[Tensor, Tensor, Tensor]:
    """int64 ``[len(indices), segments]``: the width of each segment, and where its bytes begin, and how many."""
    form, device = rows.form, rows.data.device
    width_of = _whole_bytes(rows.widths[indices])[:, : form.segments].long() + 1
    sizes = (_lengths(form.columns, form.segment, device) * width_of + 7) // 8
    begins = (rows.starts[indices].long() & 0xFFFFFFFF)[:, None] * ROW_ALIGNMENT + sizes.cumsum(1) - sizes
    return width_of, begins, sizes


def _values(indices: Tensor, rows: PackedRows, width_of: Tensor, begins: Tensor) -> Tensor:
    data, form = rows.data, rows.form
    column = torch.arange(form.columns, dtype=torch.int64, device=data.device)
    segment = column // form.segment
    width = width_of[:, segment]
    bit = (column % form.segment) * width
    place = begins[:, segment] + bit // 8
    word = data[place].long() | data[place + 1].long() << 8 | data[place + 2].long() << 16
    levels = (word >> bit % 8 & ((1 << width) - 1)).float()
    group = (indices[:, None] * form.columns + column) // form.group_size if form.group_size else 0
    if form.centred:
        return (levels - (1 << width - 1)) * rows.scales[group]
    steps = 1 / ((1 << width).float() - 1)
    if form.level_count:
        steps = 1 / (torch.full_like(levels, form.level_count) - 1)
    return levels * steps * rows.scales[group] + rows.offsets[group]


def round_activations(vectors: Tensor) -> Tensor:
    """Each block of 64 columns of float32 ``[..., columns]`` rounded to whole numbers of -127 to 127 times its largest
    absolute value over 127; NaN where an element of the block is not finite."""
    columns = vectors.shape[-1]
    blocks = torch.nn.functional.pad(vectors, (0, -columns % BLOCK_COLUMNS)).unflatten(-1, (-1, BLOCK_COLUMNS))
    most = blocks.abs().amax(-1, keepdim=True) if columns else blocks.new_zeros(())
    most_int8 = torch.full_like(most, MOST_INT8)  # of a number and a tensor, torch takes a rounded reciprocal
    unit = torch.where(most.isfinite(), most / most_int8, torch.nan)
    inverse = torch.where(most.isfinite() & (most >= LEAST_BLOCK), most_int8 / most, 0.0)
    whole = torch.where(most.isfinite(), (blocks * inverse).round(), 0.0)
    return (whole * unit).flatten(-2)[..., :columns]


def _segment_bytes(widths: Tensor, columns: int, segment: int) -> Tensor:
    """int64 ``[rows, segments]``"""
    return (_lengths(columns, segment, widths.device) * widths.long() + 7) // 8


def _lengths(columns: int, segment: int, device: torch.device) -> Tensor:
    """Elements of each segment of a row."""
    begins = torch.arange(0, columns, segment, dtype=torch.int64, device=device)
    return (columns - begins).clamp(max=segment)


def _bytes_of(levels: Tensor, width: int) -> Tensor:
    """uint8 ``[segments, bytes]`` of levels ``[segments, elements]``."""
    shifts = torch.arange(width, dtype=torch.int32, device=levels.device)
    bits = (levels[:, :, None] >> shifts & 1).flatten(1)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).view(len(levels), -1, 8)
    return (bits << torch.arange(8, dtype=torch.int32, device=levels.device)).sum(2).to(torch.uint8)


def half_bytes(widths: Tensor) -> Tensor:
    """Widths ``[rows, segments]`` as rows have them, uint8 ``[rows, width_bytes]``."""
    pairs = torch.nn.functional.pad(widths - 1, (0, widths.shape[1] % 2)).view(len(widths), -1, 2)
    return pairs[:, :, 0] | pairs[:, :, 1] << 4


def _whole_bytes(widths: Tensor) -> Tensor:
    return torch.stack([widths & 15, widths >> 4], 2).flatten(1)
