"""Products with rows that stay packed, and the rows themselves, through the compiled core."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...reference.packed_rows import READ_BEHIND, RowForm, check_levels
from .loading import core
from .registration import kernel
from .tensors import contiguous, empty, guard_tensors

MOST_VECTORS = 8  # that are multiplied with packed rows; more are with unpacked ones
MOST_OF_CORE = 128  # vectors that the core multiplies with unpacked rows; for more, torch's product is as fast
MOST_COLUMNS_OF_CORE = 1 << 14
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
def packed_linear(input, data, starts, widths, scales, offsets, form, int8=False, bias=None):
    rows, row_form, _kept = _given("packed_linear", (data, starts, widths, scales, offsets), form)
    columns, count = row_form[0], rows[-1]
    vectors, bias = _guarded(input, columns), _guarded_bias(bias, count)
    number = vectors.shape[0]
    given, added = (rows, row_form), bias
    if number <= MOST_VECTORS:
        results = _multiplied(core.multiply_rows, given, vectors, int8)
    elif int8 and core.has_panels(*given):
        bias = None if bias is None else bias.contiguous()
        results, added = _multiplied(core.multiply_panels, given, vectors, 0 if bias is None else bias.data_ptr()), None
    else:
        vectors = _rounded(vectors) if int8 else vectors
        if number <= MOST_OF_CORE and columns <= MOST_COLUMNS_OF_CORE and core.has_float_products():
            results = _multiplied(core.multiply_unpacked, given, vectors)
        else:
            results, added = _by_blocks(vectors, rows, row_form, bias), None
    if added is not None:
        results.add_(added)
    return results.view(*input.shape[:-1], count).to(input.dtype)


def _guarded(input: Tensor, columns: int) -> Tensor:
    """float32 ``[vectors, columns]``"""
    guard_tensors("packed_linear", [input])
    if input.dim() < 1 or input.shape[-1] != columns or not input.is_floating_point():
        raise ValueError(
            f"packed_linear: expected a floating input of {columns} columns, got {input.dtype} {list(input.shape)}"
        )
    return input.reshape(-1, columns).float().contiguous()


def _guarded_bias(bias: Tensor | None, count: int) -> Tensor | None:
    if bias is None:
        return None
    guard_tensors("packed_linear", [bias])
    if tuple(bias.shape) != (count,) or not bias.is_floating_point():
        raise ValueError(f"packed_linear: expected a floating bias [{count}], got {bias.dtype} {list(bias.shape)}")
    return bias.float()


def _multiplied(
    product: Callable[..., bool], rows: tuple[tuple[int, ...], tuple], vectors: Tensor, *how: int
) -> Tensor:
    """By a function of the core: packed rows as they are, or with many vectors some unpacked rows at a time."""
    results = empty([len(vectors), rows[0][-1]], torch.float32)
    given = vectors.data_ptr(), len(vectors), *how, results.data_ptr(), torch.get_num_threads()
    if not product(*rows, *given):
        raise _outside("packed_linear")
    return results


def _rounded(vectors: Tensor) -> Tensor:
    """As the oracle's round_activations has them."""
    rounded = empty(list(vectors.shape), torch.float32)
    core.round_activations(vectors.data_ptr(), *vectors.shape, rounded.data_ptr(), torch.get_num_threads())
    return rounded


def _by_blocks(vectors: Tensor, rows: tuple[int, ...], form: tuple, bias: Tensor | None) -> Tensor:
    """The products with many vectors: a block of rows is unpacked at a time."""
    count, block = rows[-1], max(1, BLOCK_ELEMENTS // form[0])
    results = empty([len(vectors), count], torch.float32)
    for begin in range(0, count, block):
        some = slice(begin, min(begin + block, count))
        indices = torch.arange(some.start, some.stop, dtype=torch.int64, device="cpu")
        weight = _unpacked("packed_linear", indices, rows, form)
        if bias is None:
            torch.mm(vectors, weight.mT, out=results[:, some])
        else:
            torch.addmm(bias[some], vectors, weight.mT, out=results[:, some])
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
    data, starts, widths, scales, offsets = kept = contiguous(tensors)
    rows = starts.shape[0] - 1 if starts.dim() == 1 else -1
    if [tensor.dtype for tensor in kept] != ROWS_DTYPES or rows < 0:
        raise ValueError(f"{who}: expected uint8 data, int32 starts, uint8 widths, float32 scales and offsets")
    row_form, width_bytes, groups, whole = _sizes(tuple(form), rows)
    if row_form is None:
        raise ValueError(f"{who}: form: expected columns, segment, group_size, centred, level_count, got {list(form)}")
    if (
        data.numel() < READ_BEHIND
        or widths.numel() != width_bytes
        or scales.numel() < groups
        or (not row_form[3] and offsets.numel() < groups)
        or not whole
    ):
        shapes = [list(tensor.shape) for tensor in kept]
        raise ValueError(
            f"{who}: data, starts, widths, scales, offsets of the shapes {shapes} do not fit {RowForm.of(form)}"
        )
    addresses = data.data_ptr(), starts.data_ptr(), widths.data_ptr(), scales.data_ptr(), offsets.data_ptr()
    return (*addresses, data.numel(), rows), row_form, kept


@functools.lru_cache(maxsize=1024)  # a layer calls with the same numbers again and again
def _sizes(form: tuple[int, ...], rows: int) -> tuple[tuple | None, int, int, bool]:
    """The form as the core takes it (None: it is none), bytes of the widths, groups, whether segments and groups are
    made of whole ones."""
    if len(form) != 5 or not 0 < form[0] < 2**31 or not 0 < form[1] <= form[0] or not 0 <= form[2] < 2**62:
        return None, 0, 0, False
    row_form = RowForm.of(form)
    whole = row_form.columns % row_form.segment == 0
    fits = row_form.group_size == 0 or row_form.group_size % row_form.segment == 0
    groups = row_form.group_count(rows) if rows else 0
    return tuple(row_form), rows * row_form.width_bytes, groups, whole and fits


def _outside(who: str) -> ValueError:
    return ValueError(f"{who}: an index or a row is out of bounds")
