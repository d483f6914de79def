"""Values packed into bit planes, and back, through the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.planes import PLANE_DTYPES
from .. import default
from .loading import core
from .registration import kernel
from .tensors import DTYPES, addresses, empty, guard_quantised, guard_tensors, packing_of, supported

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


@kernel
def pack_planes(values: Tensor, width: int, rows: int, columns: int) -> Tensor:
    return _pack_planes(values, width, rows, columns)[0]


@kernel
def pack_planes_seen(values: Tensor, width: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    planes, seen = _pack_planes(values, width, rows, columns)
    signed = seen - 2**64 if seen >= 2**63 else seen
    return planes, torch.tensor(signed, dtype=torch.int64, device="cpu")


def _pack_planes(values: Tensor, width: int, rows: int, columns: int) -> tuple[Tensor, int]:
    """The planes, and all values joined by "or", as 64 bits without sign."""
    guard_tensors("pack_planes", [values])
    block = rows * columns
    if width < 0 or rows not in PLANE_DTYPES or columns < 0 or (values.numel() and not block):
        raise ValueError(f"pack_planes: no planes of width={width}, rows={rows}, columns={columns}")
    narrow = values.dtype in INTEGERS and (width <= 16 or values.dtype != torch.uint8)  # see csrc/core/pack/planes.h
    values = (values if narrow else values.to(torch.int64)).contiguous()
    blocks = -(-values.numel() // block) if block else 0
    words = empty((blocks, width, columns), PLANE_DTYPES[rows])
    layout = values.numel(), width, rows, columns
    source = values.data_ptr(), values.element_size()
    seen = core.pack_planes(layout, *source, words.data_ptr(), torch.get_num_threads())
    return words, seen


@kernel
def quantize_planes(weight, widths, ranges, group_size, level_counts):
    tensors = guard_quantised("quantize_planes", [weight], [widths], ranges, group_size, False)
    if not supported([weight]):
        return default.quantize_planes(weight, widths, ranges, group_size, level_counts)
    (weight,), (widths,), ranges = tensors
    shapes = [(-(-max(count, 0) // 2048), width, 32) for width, count in enumerate(level_counts, 1)]
    planes = [empty(shape, torch.int64) for shape in shapes]
    packing = packing_of("quantize_planes", widths, weight.numel(), group_size, 0)
    source = (weight.data_ptr(), DTYPES[weight.dtype]), ranges.data_ptr()
    if len(planes) != 16 or not core.quantize_planes(
        packing, *source, level_counts, addresses(planes), torch.get_num_threads()
    ):
        raise ValueError(
            f"quantize_planes: expected level_counts, how many levels have 1, 2 … 16 bits, got {list(level_counts)}"
        )
    return planes


@kernel
def unpack_planes(planes: Tensor, length: int) -> Tensor:
    guard_tensors("unpack_planes", [planes])
    if planes.dim() != 3 or planes.dtype not in PLANE_DTYPES.values() or length < 0:
        given = f"{planes.dtype} {list(planes.shape)} and length={length}"
        raise ValueError(f"unpack_planes: expected planes [blocks, width, columns] and a length, got {given}")
    blocks, width, columns = planes.shape
    rows = planes.element_size() * 8
    planes = planes.contiguous()
    length = min(length, blocks * rows * columns)
    values = empty([length], torch.int16)
    layout = length, width, rows, columns
    core.unpack_planes(layout, planes.data_ptr(), values.data_ptr(), torch.get_num_threads())
    return values
