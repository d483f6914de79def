"""What launchers and kernels call by the same name: the columns of the tables, and arguments that go together.

Kernels read a column as ``tl.load(plan_ptr + STREAM)``. Columns are imported one by one, because Triton then makes
their values part of the keys of its cache.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton.language as tl

# A plan, int64 [weights, PLAN_COLUMNS]. Of a weight: its elements; the first of its programs; where its output begins
# in the common buffer; its first group among those of all weights; the stream of its noise; its place in the results;
# how many programs work on it, and how many parts the second launch of the backward cuts it into.
(
    ELEMENTS,
    PROGRAM_BEGIN,
    OUTPUT_BEGIN,
    GROUP_BEGIN,
    STREAM,
    PLACE,
    PROGRAMS,
    PARTS,
    PLAN_COLUMNS,
) = map(tl.constexpr, range(9))

# Addresses, int64 [weights, one of the two numbers]: where a weight's tensors begin. Ranges need the weights' alone.
WEIGHT, LOGITS, GRAD = map(tl.constexpr, range(3))
FORWARD_LISTS, BACKWARD_LISTS = map(tl.constexpr, (2, 3))

# Extremes, int64 [weights, EXTREMES_COLUMNS]: where the smallest and the largest element first stand, and how many
# elements share each.
PLACE_LO, PLACE_HI, TIES_LO, TIES_HI, EXTREMES_COLUMNS = map(tl.constexpr, range(5))

# Parts of the backward, float32 [programs, 2]: of the gradient of the range, and of the count of non-finite gradients.
RANGE_GRADIENT, NONFINITE, PARTIAL_COLUMNS = map(tl.constexpr, range(3))

# Owners of the second launch of the backward, int32 [programs, 2]: a weight's entry in the plan, and which part of it.
ENTRY, PART, OWNER_COLUMNS = map(tl.constexpr, range(3))


class Tables(NamedTuple):
    """A launch's tables: addresses and plan, an entry for each weight, and which entry each program works on."""

    addresses_ptr: Any
    plan_ptr: Any
    owners_ptr: Any


class Gradients(NamedTuple):
    """What the backward writes: gradients of all weights of a launch in their common buffer, float32 [groups of all
    weights] of the logits, float32 [weights] how many of these were not finite."""

    weights_ptr: Any
    logits_ptr: Any
    nonfinite_ptr: Any


class Rule(NamedTuple):
    """What turns t = sigmoid(logit) into a step: ``low + t * (high - low)`` is a number of bits, or, for "noise", the
    binary logarithm of the step."""

    low: Any
    high: Any


def rule_of(min_bits: float, max_bits: float, param: str) -> Rule:
    if param == "bits":
        return Rule(float(min_bits), float(max_bits))
    return Rule(-math.log2(2**min_bits - 1), -math.log2(2**max_bits - 1))


class SizeBounds(NamedTuple):
    """What a table of widths begins at, and what is added to all bits."""

    min_bits: Any
    extra_bits: Any


class Range(NamedTuple):
    """Smallest and largest element; in tables float32 [..., 2]."""

    lo: Any
    hi: Any


class Config(NamedTuple):
    """What a training kernel is compiled for. A field that the kernel does not read keeps its default, so that one
    compiled kernel serves all of the field's values.

    ``weight``, ``grad``: dtypes. A program handles ``tile`` elements in steps of ``whole_step``, or of ``part_step``
    where it masks; in kernels of ragged groups, ``groups`` groups in steps of ``columns`` elements. Ranges: partial
    results of ``range_step`` elements each, summed up ``chunk`` at a time. ``ptx``: NVIDIA's instructions may be used.
    """

    ptx: bool = False
    group_size: int = 0
    per_group: bool = False
    param: str = "bits"
    noise_kind: str = "uniform"
    weight: Any = None
    grad: Any = None
    tile: int = 0
    whole_step: int = 0
    part_step: int = 0
    groups: int = 0
    columns: int = 0
    range_step: int = 0
    chunk: int = 0
