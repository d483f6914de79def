"""Device functions that find, load and store a program's tile of one weight among many (``tables.py``).

A tile is *whole* when it lies inside its weight and all its addresses are multiples of 16 bytes: then nothing
is masked and access is 128 bits wide. Kernels carry a body for whole tiles and one for the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import rounded


@triton.jit
def tile_of(plan, owners, TILE: tl.constexpr):
    """Number of this program, row of its weight in the tables, the weight's size, first element of the
    tile."""
    tile = tl.program_id(0)
    row = tl.load(owners + tile)
    count = tl.load(plan + row * 8)
    first = (tile - tl.load(plan + row * 8 + 1)) * TILE
    return tile, row, count, first


@triton.jit
def is_whole(addresses, first, count, TILE: tl.constexpr):
    """Whether nothing need be masked; ``addresses``: those of all tensors of the weight, or-ed together."""
    return ((addresses & 15) == 0) & (first + TILE <= count)


@triton.jit
def load_tile(address, first, count, other, DTYPE: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr):
    """float32 ``[TILE]``: elements ``first ...`` of the tensor at ``address``; ``other`` beyond its end."""
    element = first + tl.arange(0, TILE)
    pointer = address.to(tl.pointer_type(DTYPE))
    if WHOLE:
        return tl.load(tl.multiple_of(pointer, 16) + element).to(tl.float32)
    return tl.load(pointer + element, element < count, other).to(tl.float32)


@triton.jit
def store_tile(pointer, first, count, values, TILE: tl.constexpr, WHOLE: tl.constexpr):
    """Writes ``values`` [TILE] to elements ``first ...`` of the output that begins, 16-byte aligned, at
    ``pointer``."""
    element = first + tl.arange(0, TILE)
    values = rounded(values, pointer.dtype.element_ty)
    if WHOLE:
        tl.store(pointer + element, values)
    else:
        tl.store(pointer + element, values, element < count)


@triton.jit
def spread(values, GROUP: tl.constexpr, TILE: tl.constexpr):
    """``[TILE / GROUP] -> [TILE]``: one value per group becomes one per element."""
    if GROUP == 1:
        return values
    return tl.reshape(tl.broadcast_to(values[:, None], (TILE // GROUP, GROUP)), (TILE,))


@triton.jit
def groups_of(values, GROUP: tl.constexpr, TILE: tl.constexpr):
    """``[TILE] -> [TILE / GROUP, GROUP]``."""
    return tl.reshape(values, (TILE // GROUP, GROUP))
