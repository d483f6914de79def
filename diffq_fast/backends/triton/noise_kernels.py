"""The forward of training: ``noisy = weight + ((hi - lo) * step) * z``, for all weights of a bucket in one
launch."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import greatest, least, step_of
from .noise import tile_noise
from .tiles import groups_of, is_whole, load_tile, spread, store_tile, tile_of


@triton.jit
def load_logits(address, first, count, GROUP: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr):
    """Logits of the tile's groups ``[TILE / GROUP]``; of each element ``[TILE]`` for a group that fits no
    tile; a scalar for one group (0)."""
    pointer = address.to(tl.pointer_type(tl.float32))
    if GROUP == 0:
        logit = tl.load(pointer)
    elif TILE % GROUP != 0:
        element = first + tl.arange(0, TILE)
        logit = tl.load(pointer + element // GROUP, element < count, 0.0)
    else:
        group = first // GROUP + tl.arange(0, TILE // GROUP)
        if WHOLE:
            logit = tl.load(tl.multiple_of(pointer, 16) + group)
        else:
            logit = tl.load(pointer + group, group * GROUP < count, 0.0)
    return logit


@triton.jit
def group_bounds(weight, first, count, GROUP: tl.constexpr, TILE: tl.constexpr):
    """lo and hi of each of the tile's groups, elements beyond the weight's end left out."""
    inside = first + tl.arange(0, TILE) < count
    lo = least(groups_of(tl.where(inside, weight, float("inf")), GROUP, TILE), 1)
    hi = greatest(groups_of(tl.where(inside, weight, float("-inf")), GROUP, TILE), 1)
    return lo, hi


@triton.jit
def store_group_bounds(found, first_group, first, count, lo, hi, GROUP: tl.constexpr, TILE: tl.constexpr):
    group = first // GROUP + tl.arange(0, TILE // GROUP)
    inside = group * GROUP < count
    tl.store(found + (first_group + group) * 2, lo, inside)
    tl.store(found + (first_group + group) * 2 + 1, hi, inside)


@triton.jit
def _noise_tile(
    weight, logits, first, count, stream, key, length, found, first_group, noisy, low, high, GROUP:
    tl.constexpr, PER_GROUP: tl.constexpr, PARAM: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr, TILE:
    tl.constexpr, PTX: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One tile of the weight and logits at these addresses. Loads come first: making the noise hides their
    time."""
    value = load_tile(weight, first, count, 0.0, DTYPE, TILE, WHOLE)
    logit = load_logits(logits, first, count, GROUP, TILE, WHOLE)
    z = tile_noise(first, stream, key, KIND, TILE, PTX)
    step = step_of(logit, low, high, PARAM, PTX)
    if PER_GROUP:
        lo, hi = group_bounds(value, first, count, GROUP, TILE)
        store_group_bounds(found, first_group, first, count, lo, hi, GROUP, TILE)
        amplitude = (hi - lo) * step
    else:
        amplitude = length * step
    if GROUP != 0 and TILE % GROUP == 0:
        amplitude = spread(amplitude, GROUP, TILE)
    store_tile(noisy, first, count, value + amplitude * z, TILE, WHOLE)


@triton.jit
def add_noise_kernel(
    addresses, plan, owners, key, found, noisy, low, high, GROUP: tl.constexpr, PER_GROUP: tl.constexpr,
    PARAM: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr, WHOLE_STEP:
    tl.constexpr, PART_STEP: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Adds noise to one tile of one weight; groups divide a tile, or (no PER_GROUP) have any size.

    It goes in steps of WHOLE_STEP elements, as many as the registers hold well, or of PART_STEP where it
    masks.

    ``addresses`` int64 [weights, 2]: weight [count] DTYPE and logits [groups] float32, read; ``key`` int64,
    read; ``found`` float32 [weights or groups, 2], read, or written when PER_GROUP; ``noisy``: the common
    buffer, written.
    """
    _, row, count, first = tile_of(plan, owners, TILE)
    weight = tl.load(addresses + row * 2)
    logits = tl.load(addresses + row * 2 + 1)
    plan += row * 8
    noisy += tl.multiple_of(tl.load(plan + 2), 16)
    first_group = tl.load(plan + 3)
    stream = tl.load(plan + 4).to(tl.uint32)
    key = tl.load(key)
    length = 0.0
    if not PER_GROUP:
        bounds = found + tl.load(plan + 5) * 2
        length = tl.load(bounds + 1) - tl.load(bounds)
    if is_whole(weight | logits, first, count, TILE):
        for start in range(0, TILE, WHOLE_STEP):
            _noise_tile(
                weight, logits, first + start, count, stream, key, length, found, first_group, noisy, low,
                high, GROUP, PER_GROUP, PARAM, KIND, DTYPE, WHOLE_STEP, PTX, True,
            )  # fmt: skip
    else:
        stop = tl.minimum(first + TILE, count)
        while first < stop:
            _noise_tile(
                weight, logits, first, count, stream, key, length, found, first_group, noisy, low, high,
                GROUP, PER_GROUP, PARAM, KIND, DTYPE, PART_STEP, PTX, False,
            )  # fmt: skip
            first += PART_STEP


@triton.jit(do_not_specialize=["stream", "start", "first", "stop"])
def noise_kernel(key, stream, start, first, stop, noise, KIND: tl.constexpr, TILE: tl.constexpr, PTX: tl.constexpr):
    """Noise of elements ``first ... stop - 1``. One program handles one tile, the first one begins at
    ``start``.

    ``key`` int64, read; ``noise`` float32 [stop - first], written.
    """
    begin = start + tl.program_id(0).to(tl.int64) * TILE
    z = tile_noise(begin, stream.to(tl.uint32), tl.load(key), KIND, TILE, PTX)
    element = begin + tl.arange(0, TILE)
    tl.store(noise + (element - first), z, (element >= first) & (element < stop))
