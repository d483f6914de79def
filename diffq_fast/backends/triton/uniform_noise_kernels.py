"""Uniform noise of one step: ``noisy = weight + step * z``, and the sums of ``grad * z`` over the groups."""

from __future__ import annotations

import triton
import triton.language as tl

from .add_noise_kernels import load_logits
from .arguments import (
    ELEMENTS,
    FORWARD_LISTS,
    GROUP_BEGIN,
    LOGITS,
    OUTPUT_BEGIN,
    PLAN_COLUMNS,
    PROGRAM_BEGIN,
    STREAM,
    WEIGHT,
)
from .philox import tile_noise
from .tiles import grouped, is_whole, load_tile, spread, store_tile, tile_of


@triton.jit
def _noise_tile(weight, steps, output_ptr, stream, key, begin, elements, CONFIG: tl.constexpr, WHOLE: tl.constexpr):
    STEP: tl.constexpr = CONFIG.whole_step if WHOLE else CONFIG.part_step
    stop = begin + CONFIG.tile if WHOLE else tl.minimum(begin + CONFIG.tile, elements)
    while begin < stop:
        value = load_tile(weight, begin, elements, 0.0, CONFIG.weight, STEP, WHOLE)
        step = load_logits(steps, begin, elements, CONFIG.group_size, STEP, WHOLE)
        if CONFIG.group_size != 0 and STEP % CONFIG.group_size == 0:
            step = spread(step, CONFIG.group_size, STEP)
        z = tile_noise(begin, stream, key, CONFIG, STEP)
        store_tile(output_ptr, begin, elements, value + step * z, STEP, WHOLE)
        begin += STEP


@triton.jit
def uniform_noise_kernel(tables, key_ptr, noisy_ptr, CONFIG: tl.constexpr):
    """``noisy = weight + step * z``; groups of any size.

    ``tables``: addresses of weight [elements] of CONFIG.weight and steps [groups] float32, read
    ``key_ptr`` [] int64, read
    ``noisy_ptr`` [all outputs] float32|bf16|f16, written

    One program handles one tile of one weight.
    """
    entry, elements, begin = tile_of(tables, CONFIG.tile)
    weight = tl.load(tables.addresses_ptr + entry * FORWARD_LISTS + WEIGHT)
    steps = tl.load(tables.addresses_ptr + entry * FORWARD_LISTS + LOGITS)
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    stream = tl.load(plan_ptr + STREAM).to(tl.uint32)
    output_ptr = noisy_ptr + tl.multiple_of(tl.load(plan_ptr + OUTPUT_BEGIN), 16)
    key = tl.load(key_ptr)
    if is_whole(weight | steps, begin, elements, CONFIG.tile):
        _noise_tile(weight, steps, output_ptr, stream, key, begin, elements, CONFIG, True)
    else:
        _noise_tile(weight, steps, output_ptr, stream, key, begin, elements, CONFIG, False)


@triton.jit
def _group_sums(grad, sums_ptr, stream, key, begin, elements, CONFIG: tl.constexpr, WHOLE: tl.constexpr):
    STEP: tl.constexpr = CONFIG.whole_step if WHOLE else CONFIG.part_step
    stop = begin + CONFIG.tile if WHOLE else tl.minimum(begin + CONFIG.tile, elements)
    while begin < stop:
        value = load_tile(grad, begin, elements, 0.0, CONFIG.grad, STEP, WHOLE)
        product = value * tile_noise(begin, stream, key, CONFIG, STEP)
        sums = tl.sum(grouped(product, CONFIG.group_size, STEP), 1)
        group = begin // CONFIG.group_size + tl.arange(0, STEP // CONFIG.group_size)
        if WHOLE:
            tl.store(sums_ptr + group, sums)
        else:
            tl.store(sums_ptr + group, sums, group * CONFIG.group_size < elements)
        begin += STEP


@triton.jit
def group_sums_kernel(tables, key_ptr, sums_ptr, CONFIG: tl.constexpr):
    """``sums[g] = sum of grad * z`` over group g; the group size divides CONFIG.part_step.

    ``tables``: addresses of grad [elements] of CONFIG.grad, read; ``key_ptr`` [] int64, read
    ``sums_ptr`` [groups of all weights] float32, written

    One program handles one tile of one weight.
    """
    entry, elements, begin = tile_of(tables, CONFIG.tile)
    grad = tl.load(tables.addresses_ptr + entry)
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    stream = tl.load(plan_ptr + STREAM).to(tl.uint32)
    sums_ptr += tl.load(plan_ptr + GROUP_BEGIN)
    key = tl.load(key_ptr)
    if is_whole(grad, begin, elements, CONFIG.tile):
        _group_sums(grad, sums_ptr, stream, key, begin, elements, CONFIG, True)
    else:
        _group_sums(grad, sums_ptr, stream, key, begin, elements, CONFIG, False)


@triton.jit
def piece_sums_kernel(tables, key_ptr, sums_ptr, group_size, CONFIG: tl.constexpr):
    """The same for groups of any size, each cut into pieces of CONFIG.tile elements.

    ``sums_ptr`` [programs] float32, written: of each piece.

    One program handles one piece of one group.
    """
    program = tl.program_id(0)
    entry = tl.load(tables.owners_ptr + program)
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    elements = tl.load(plan_ptr + ELEMENTS)
    pieces = (group_size + CONFIG.tile - 1) // CONFIG.tile
    place = program - tl.load(plan_ptr + PROGRAM_BEGIN)
    group = place // pieces
    begin = group * group_size + place % pieces * CONFIG.tile
    stop = tl.minimum(tl.minimum(begin + CONFIG.tile, (group + 1) * group_size), elements)
    grad_ptr = tl.load(tables.addresses_ptr + entry).to(tl.pointer_type(CONFIG.grad))
    stream, key = tl.load(plan_ptr + STREAM).to(tl.uint32), tl.load(key_ptr)
    sums = tl.full((CONFIG.part_step,), 0.0, tl.float32)  # zeros() takes no field of a config
    first = begin // CONFIG.part_step * CONFIG.part_step  # noise comes in whole steps
    while first < stop:
        element = first + tl.arange(0, CONFIG.part_step)
        grad = tl.load(grad_ptr + element, (element >= begin) & (element < stop), 0.0).to(tl.float32)
        sums += grad * tile_noise(first, stream, key, CONFIG, CONFIG.part_step)
        first += CONFIG.part_step
    tl.store(sums_ptr + program, tl.sum(sums, 0))
