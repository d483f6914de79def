"""Device functions for groups of any size: a tile's first axis is groups, its second walks along them."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import ELEMENTS, PLAN_COLUMNS, PROGRAM_BEGIN, Range
from .arithmetic import greatest, least


@triton.jit
def groups_of_program(tables, CONFIG: tl.constexpr):
    """Entry of the weight in the tables, its size, this program's groups [groups] int64, and which of them exist."""
    entry = tl.load(tables.owners_ptr + tl.program_id(0))
    plan_ptr = tables.plan_ptr + entry * PLAN_COLUMNS
    elements = tl.load(plan_ptr + ELEMENTS)
    group = (tl.program_id(0) - tl.load(plan_ptr + PROGRAM_BEGIN)) * CONFIG.groups + tl.arange(0, CONFIG.groups)
    return entry, elements, group, group * CONFIG.group_size < elements


@triton.jit
def first_of_program(tables, entry, CONFIG: tl.constexpr):
    """The element at which this program's groups begin, int64."""
    begin = tl.load(tables.plan_ptr + entry * PLAN_COLUMNS + PROGRAM_BEGIN)
    return (tl.program_id(0) - begin) * (CONFIG.groups * CONFIG.group_size)


@triton.jit
def elements_of_groups(group, start, elements, CONFIG: tl.constexpr):
    """Elements [groups, columns] int64 from position ``start`` of each group, and which of them exist."""
    position = start + tl.arange(0, CONFIG.columns)[None, :]
    element = group[:, None] * CONFIG.group_size + position
    return element, (position < CONFIG.group_size) & (element < elements)


@triton.jit
def ranges_of_groups(weight_ptr, group, elements, CONFIG: tl.constexpr):
    """Range of each group."""
    lo = tl.full((CONFIG.groups, CONFIG.columns), float("inf"), tl.float32)
    hi = tl.full((CONFIG.groups, CONFIG.columns), float("-inf"), tl.float32)
    for start in range(0, CONFIG.group_size, CONFIG.columns):
        element, inside = elements_of_groups(group, start, elements, CONFIG)
        value = tl.load(weight_ptr + element, inside, 0.0).to(tl.float32)
        lo = tl.minimum(lo, tl.where(inside, value, float("inf")), tl.PropagateNan.ALL)
        hi = tl.maximum(hi, tl.where(inside, value, float("-inf")), tl.PropagateNan.ALL)
    return Range(least(lo, 1), greatest(hi, 1))
