"""Products with rows that stay packed, and the rows themselves, through the compiled core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...reference.packed_rows import READ_BEHIND, RowForm, check_levels
from .loading import core
from .registration import kernel
from .tensors import contiguous, empty, guard_tensors

MOST_VECTORS = 8  # more are multiplied by torch, with blocks of unpacked rows
ROWS_DTYPES = [torch.uint8, torch.int32, torch.uint8, torch.float32, torch.float32]
BLOCK_ELEMENTS = 1 << 20  # of a block: smaller ones make for slower products, as measured


@kernel
def pack_rows(levels, widths, starts, segment, size):
    guard_tensors("pack_rows", [levels, widths, starts])
    given = [tensor.contiguous() for tensor in (levels, widths, starts)]
    rows, columns = levels.shape if levels.dim() == 2 else (-1, -1)
    segments = -(-columns // segment) if 0 < segment <= max(columns, 1) else -1
    dtypes = [tensor.dtype for tensor in given]
    if (
        dtypes != [torch.int32, torch.uint8, torch.int32]
        or widths.shape != (rows, segments)
        or starts.shape != (rows + 1,)
        or not READ_BEHIND <= size < 2**62
    ):
        raise ValueError(
            "pack_rows: expected int32 levels [rows, columns], uint8 widths [rows, columns / segment] and int32 starts "
            f"[rows + 1], got {dtypes} {[list(tensor.shape) for tensor in given]}, segment {segment}, size {size}"
        )
    data = torch.zeros(size, dtype=torch.uint8, device="cpu")
    addresses = [tensor.data_ptr() for tensor in given]
    problem = core.pack_rows(*addresses, rows, columns, segment, data.data_ptr(), size, torch.get_num_threads())
    if problem:
        check_levels(given[0], given[1], segment)  # says which one
        raise ValueError(f"pack_rows: {problem}")
    return data


@kernel
def unpack_rows(indices, data, starts, widths, scales, offsets, form):
    guard_tensors("unpack_rows", [indices])
    rows, row_form, _kept = _given("unpack_rows", (data, starts, widths, scales, offsets), form)
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise ValueError(f"unpack_rows: indices: expected int64 [rows], got {indices.dtype} {list(indices.shape)}")
    return _unpacked("unpack_rows", indices.contiguous(), rows, row_form)


@kernel
def packed_linear(input, data, starts, widths, scales, offsets, form, int8=False):
    guard_tensors("packed_linear", [input])
    rows, row_form, _kept = _given("packed_linear", (data, starts, widths, scales, offsets), form)
    columns, count = form[0], starts.shape[0] - 1
    if input.dim() < 1 or input.shape[-1] != columns or not input.is_floating_point():
        raise ValueError(
            f"packed_linear: expected a floating input of {columns} columns, got {input.dtype} {list(input.shape)}"
        )
    vectors = input.reshape(-1, columns).float().contiguous()
    number = vectors.shape[0]
    if number <= MOST_VECTORS:
        results = torch.empty((number, count), dtype=torch.float32, device="cpu")
        given = vectors.data_ptr(), number, int8, results.data_ptr(), torch.get_num_threads()
        if not core.multiply_rows(rows, row_form, *given):
            raise _outside("packed_linear")
    elif int8 and core.has_panels(rows, row_form):
        results = _by_panels(vectors, rows, row_form, count)
    else:
        results = _by_blocks(_rounded(vectors) if int8 else vectors, rows, row_form, count)
    return results.view(*input.shape[:-1], count).to(input.dtype)


def _by_panels(vectors: Tensor, rows: tuple[int, ...], form: tuple[int, ...], count: int) -> Tensor:
    """The products with many vectors in eight bits: levels are unpacked to bytes, some rows at a time."""
    results = empty([len(vectors), count], torch.float32)
    if not core.multiply_panels(
        rows, form, vectors.data_ptr(), len(vectors), results.data_ptr(), torch.get_num_threads()
    ):
        raise _outside("packed_linear")
    return results


def _rounded(vectors: Tensor) -> Tensor:
    """As the oracle's round_activations has them."""
    rounded = empty(list(vectors.shape), torch.float32)
    core.round_activations(vectors.data_ptr(), *vectors.shape, rounded.data_ptr(), torch.get_num_threads())
    return rounded


def _by_blocks(vectors: Tensor, rows: tuple[int, ...], form: tuple[int, ...], count: int) -> Tensor:
    """The products with many vectors: a block of rows is unpacked at a time."""
    results = empty([len(vectors), count], torch.float32)
    block = max(1, BLOCK_ELEMENTS // max(vectors.shape[1], 1))
    for indices in torch.arange(count, dtype=torch.int64, device="cpu").split(block):
        begin = int(indices[0])
        weight = _unpacked("packed_linear", indices, rows, form)
        torch.mm(vectors, weight.mT, out=results[:, begin : begin + len(indices)])
    return results


def _unpacked(who: str, indices: Tensor, rows: tuple[int, ...], form: tuple[int, ...]) -> Tensor:
    values = empty([len(indices), form[0]], torch.float32)
    given = indices.data_ptr(), len(indices), values.data_ptr(), torch.get_num_threads()
    if not core.unpack_rows(rows, form, *given):
        raise _outside(who)
    return values


def _given(who: str, tensors: Sequence[Tensor], form: Sequence[int]) -> tuple[tuple[int, ...], tuple, list[Tensor]]:
    """What the core is told of rows, and the tensors to be kept while it reads them."""
    guard_tensors(who, tensors)
    if len(form) != 5 or not 0 < form[0] < 2**31 or not 0 < form[1] <= form[0] or not 0 <= form[2] < 2**62:
        raise ValueError(f"{who}: form: expected columns, segment, group_size, centred, level_count, got {list(form)}")
    row_form = RowForm.of(form)
    data, starts, widths, scales, offsets = kept = contiguous(tensors)
    rows = starts.shape[0] - 1 if starts.dim() == 1 else -1
    if [tensor.dtype for tensor in kept] != ROWS_DTYPES or rows < 0:
        raise ValueError(f"{who}: expected uint8 data, int32 starts, uint8 widths, float32 scales and offsets")
    groups = row_form.group_count(rows) if rows else 0
    whole = row_form.columns % row_form.segment == 0 or row_form.segment == row_form.columns
    fits = row_form.group_size == 0 or row_form.group_size % row_form.segment == 0
    if (
        data.numel() < READ_BEHIND
        or widths.numel() != rows * row_form.width_bytes
        or scales.numel() < groups
        or (not row_form.centred and offsets.numel() < groups)
        or not (whole and fits)
    ):
        shapes = [list(tensor.shape) for tensor in kept]
        raise ValueError(f"{who}: data, starts, widths, scales, offsets of the shapes {shapes} do not fit {row_form}")
    addresses = tuple(tensor.data_ptr() for tensor in kept)
    return (*addresses, data.numel(), rows), tuple(row_form), kept


def _outside(who: str) -> ValueError:
    return ValueError(f"{who}: an index or a row is out of bounds")
