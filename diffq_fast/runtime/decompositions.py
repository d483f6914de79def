"""torch's own operations in the place of the package's operators, for programs that run where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import functional
from ..reference.packed_rows import PackedRows, RowForm, decode_rows, multiply, round_activations

_ROWS = len(PackedRows._fields)  # arguments of an operator that are rows


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """The operators of packed layers as operations of aten.

    ``program.run_decompositions(diffq_fast.decompositions())`` gives a program of ``torch.export`` that needs no
    diffq_fast where it is loaded. Looked up rows have the same bits, products differ by rounding. A weight is unpacked
    in each run, about a million elements at a time, by some twenty operations with integers of eight bytes.
    """
    return {functional.unpack_rows_operator: _unpack_rows, functional.packed_linear_operator: _packed_linear}


def _unpack_rows(indices: Tensor, *rows: Any) -> Tensor:
    return decode_rows(indices, _rows(rows))


def _packed_linear(input: Tensor, *arguments: Any) -> Tensor:
    """``arguments``: rows, then int8 and bias, of which export leaves out what is as by default."""
    rows, others = arguments[:_ROWS], arguments[_ROWS:]
    int8 = others[0] if others else False
    bias = others[1] if len(others) > 1 else None
    vectors = round_activations(input.float()) if int8 else input.float()
    products = multiply(vectors, _rows(rows), decode_rows)
    return (products if bias is None else products + bias).to(input.dtype)


def _rows(arguments: tuple[Any, ...]) -> PackedRows:
    data, starts, widths, scales, offsets, form = arguments
    return PackedRows(data, starts, widths, scales, offsets, RowForm.of(form))
