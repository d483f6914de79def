"""Products with rows that stay packed, and the rows themselves."""

from __future__ import annotations

from ...reference import packed_rows as reference
from .registration import kernel

OUTSIDE = (IndexError, ZeroDivisionError)  # rows without columns, or segments without elements, are no rows


@kernel
def pack_rows(levels, widths, starts, segment, size):
    try:
        return reference.put_levels(levels, widths, starts, segment, size)
    except (IndexError, RuntimeError):
        raise ValueError("pack_rows: the rows do not lie in their data") from None


@kernel
def unpack_rows(indices, data, starts, widths, scales, offsets, form):
    try:
        return reference.unpack_rows(indices, data, starts, widths, scales, offsets, form)
    except OUTSIDE:
        raise ValueError("unpack_rows: an index or a row is out of bounds") from None


@kernel
def packed_linear(input, data, starts, widths, scales, offsets, form, int8=False, bias=None):
    vectors = reference.round_activations(input.float()) if int8 else input.float()
    try:
        products = reference.packed_linear(vectors, data, starts, widths, scales, offsets, form)
    except OUTSIDE:
        raise ValueError("packed_linear: a row is out of bounds") from None
    return (products if bias is None else products + bias).to(input.dtype)
