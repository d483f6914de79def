"""Products with rows that stay packed, and the rows themselves."""

from __future__ import annotations

from ...reference import packed_rows as reference
from .registration import kernel


@kernel
def unpack_rows(indices, data, starts, widths, scales, offsets, form):
    return reference.unpack_rows(indices, data, starts, widths, scales, offsets, form)


@kernel
def packed_linear(input, data, starts, widths, scales, offsets, form):
    return reference.packed_linear(input.float(), data, starts, widths, scales, offsets, form).to(input.dtype)
