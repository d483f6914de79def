"""Device functions that find, load and store a program's tile of one weight among many (``tables.py``).

A tile is *whole* when it lies inside its weight and all its addresses are multiples of 16 bytes: then nothing
is masked and access is 128 bits wide. Kernels carry a body for whole tiles and one for the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import ELEMENTS, PLAN_COLUMNS, PROGRAM_BEGIN, Range
from .arithmetic import rounded


@triton.jit
def tile_of(tables, TILE: tl.constexpr):
    """The weight's entry in the tables, the weight's size, and where this program's tile begins in it."""
    tile = tl.program_id(0)
    entry = tl.load(tables.owners_ptr + tile)
    elements = tl.load(tables.plan_ptr + entry * PLAN_COLUMNS + ELEMENTS)
    begin = (tile - tl.load(tables.plan_ptr + entry * PLAN_COLUMNS + PROGRAM_BEGIN)) * TILE
    return entry, elements, begin


@triton.jit
def is_whole(addresses, begin, elements, TILE: tl.constexpr):
    """Whether nothing need be masked; ``addresses``: those of all tensors of the weight, or-ed together."""
    return ((addresses & 15) == 0) & (begin + TILE <= elements)


@triton.jit
def load_tile(address, begin, elements, beyond, DTYPE: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr):
    """float32 ``[TILE]``: elements ``begin ...`` of the tensor at ``address``; ``beyond`` past its end."""
    element = begin + tl.arange(0, TILE)
    pointer = address.to(tl.pointer_type(DTYPE))
    if WHOLE:
        return tl.load(tl.multiple_of(pointer, 16) + element).to(tl.float32)
    return tl.load(pointer + element, element < elements, beyond).to(tl.float32)


@triton.jit
def store_tile(pointer, begin, elements, values, TILE: tl.constexpr, WHOLE: tl.constexpr):
    """Writes ``values`` [TILE] to elements ``begin ...`` of the output that begins, 16-byte aligned, at
    ``pointer``."""
    element = begin + tl.arange(0, TILE)
    values = rounded(values, pointer.dtype.element_ty)
    if WHOLE:
        tl.store(pointer + element, values)
    else:
        tl.store(pointer + element, values, element < elements)


@triton.jit
def spread(values, GROUP: tl.constexpr, TILE: tl.constexpr):
    """``[TILE / GROUP] -> [TILE]``: one value per group becomes one per element."""
    if GROUP == 1:
        return values
    return tl.reshape(tl.broadcast_to(values[:, None], (TILE // GROUP, GROUP)), (TILE,))


@triton.jit
def grouped(values, GROUP: tl.constexpr, TILE: tl.constexpr):
    """``[TILE] -> [TILE / GROUP, GROUP]``."""
    return tl.reshape(values, (TILE // GROUP, GROUP))


@triton.jit
def load_range(ranges_ptr, place):
    return Range(tl.load(ranges_ptr + place * 2), tl.load(ranges_ptr + place * 2 + 1))


@triton.jit
def load_ranges(ranges_ptr, places, exists):
    """The ranges at ``places`` (any shape); (0, 0) where none ``exists``."""
    return Range(tl.load(ranges_ptr + places * 2, exists, 0.0), tl.load(ranges_ptr + places * 2 + 1, exists, 0.0))


@triton.jit
def store_ranges(ranges_ptr, places, ranges, exists):
    tl.store(ranges_ptr + places * 2, ranges.lo, exists)
    tl.store(ranges_ptr + places * 2 + 1, ranges.hi, exists)
