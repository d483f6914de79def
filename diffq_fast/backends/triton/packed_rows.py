"""Launchers of rows that stay packed; meanings and shapes: ``diffq_fast/_ops.py``.

A launch cannot tell that an index or a row is out of bounds without a wait for the device: what lies outside is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ...reference.packed_rows import RowForm, round_activations
from .. import default
from .launching import launch
from .packed_rows_kernels import Rows, RowsConfig, multiply_rows_kernel, unpack_rows_kernel

TILE = 1024  # elements of a row
ROWS = 4  # that one program multiplies with one vector
MOST_VECTORS = 8  # more are multiplied by torch, with blocks of unpacked rows
BLOCK_ELEMENTS = 1 << 24  # of such a block
MOST_COLUMNS = 1 << 26  # their bits are counted in int32


def unpack_rows(indices, data, starts, widths, scales, offsets, form):
    if form[0] > MOST_COLUMNS:
        return default.unpack_rows(indices, data, starts, widths, scales, offsets, form)
    return _unpacked(indices, (data, starts, widths, scales, offsets), form)


def packed_linear(input, data, starts, widths, scales, offsets, form, int8=False, bias=None):
    columns, count = form[0], starts.shape[0] - 1
    if columns > MOST_COLUMNS:
        return default.packed_linear(input, data, starts, widths, scales, offsets, form, int8, bias)
    vectors = input.reshape(-1, columns).float()
    vectors = (round_activations(vectors) if int8 else vectors).contiguous()
    number = vectors.shape[0]
    rows = data, starts, widths, scales, offsets
    results = (_multiplied if number <= MOST_VECTORS else _by_blocks)(vectors, rows, form)
    if bias is not None:
        results.add_(bias)
    return results.view(*input.shape[:-1], count).to(input.dtype)


def _unpacked(indices: Tensor, rows: Sequence[Tensor], form: Sequence[int]) -> Tensor:
    values = torch.empty((indices.shape[0], form[0]), dtype=torch.float32, device=rows[0].device)
    if rows[1].shape[0] < 2:
        return values.fill_(torch.nan)
    given, config = _given(rows, form, 1, 1)
    arguments = indices.contiguous(), given, values
    launch(unpack_rows_kernel, len(values), *arguments, CONFIG=config, enable_fp_fusion=False)
    return values


def _multiplied(vectors: Tensor, rows: Sequence[Tensor], form: Sequence[int]) -> Tensor:
    number, count = len(vectors), rows[1].shape[0] - 1
    results = torch.empty((number, count), dtype=torch.float32, device=vectors.device)
    if results.numel():
        per_program = ROWS if number == 1 else 1
        given, config = _given(rows, form, per_program, triton.next_power_of_2(number))
        arguments = vectors, number, given, results
        launch(multiply_rows_kernel, -(-count // per_program), *arguments, CONFIG=config, enable_fp_fusion=False)
    return results


def _by_blocks(vectors: Tensor, rows: Sequence[Tensor], form: Sequence[int]) -> Tensor:
    """The products with many vectors: a block of rows is unpacked at a time."""
    count = rows[1].shape[0] - 1
    results = torch.empty((len(vectors), count), dtype=torch.float32, device=vectors.device)
    every = torch.arange(count, dtype=torch.int64, device=vectors.device)
    begin = 0
    for indices in every.split(max(1, BLOCK_ELEMENTS // form[0])):
        end = begin + len(indices)
        torch.mm(vectors, _unpacked(indices, rows, form).mT, out=results[:, begin:end])
        begin = end
    return results


def _given(rows: Sequence[Tensor], form: Sequence[int], per_program: int, vectors: int) -> tuple[Rows, RowsConfig]:
    """What a launch is given of the rows, and what it is compiled for."""
    row_form = RowForm.of(form)
    data, starts, widths, scales, offsets = (each.contiguous() for each in rows)
    if data.data_ptr() % 4:
        data = data.clone()
    words = data[: data.numel() // 4 * 4].view(torch.int32)
    segment, segments = row_form.segment, row_form.segments
    numbers = words.numel(), starts.shape[0] - 1, max(1, row_form.group_size // segment)
    span = min(triton.next_power_of_2(segment), TILE)
    at_once = min(triton.next_power_of_2(segments), TILE // span)
    sizes = segments, segment, at_once, span, per_program, vectors
    config = RowsConfig(*sizes, row_form.group_size == 0, row_form.centred, row_form.level_count)
    return Rows(words, starts, widths, scales, offsets, *numbers), config
