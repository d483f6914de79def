"""Quantise and dequantise, each weight by itself."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .levels import integer, lo_and_length, may_fuse, rounded_level, weight_of, whole_number


class RequantizeConfig(NamedTuple):
    """What the kernel is compiled for. A tile is ``runs`` runs of ``run`` elements; ``run`` divides ``group_size``, of
    which 0 is one group. ``fused``: as in :func:`rounded_level`, where the range allows."""

    group_size: int
    per_group: bool
    quantize: bool
    dequantize: bool
    fused: bool
    runs: int
    run: int


@triton.jit
def _requantize_tile(
    source_ptr, widths_ptr, ranges_ptr, result_ptr, elements, CONFIG: tl.constexpr, USUAL: tl.constexpr
):
    """The program's elements, in runs that each lie in one group. USUAL: all of them exist, and division may be
    fused."""
    begin = tl.program_id(0).to(tl.int64) * (CONFIG.runs * CONFIG.run)
    start = begin + (tl.arange(0, CONFIG.runs) * CONFIG.run)[:, None]
    element = start + tl.arange(0, CONFIG.run)[None, :]
    group = start // CONFIG.group_size if CONFIG.group_size else start * 0
    exists = start == start if USUAL else start < elements
    width = tl.load(widths_ptr + group, exists, 1).to(tl.int32)
    if CONFIG.per_group:
        lo, length = lo_and_length(ranges_ptr, group, exists, True)
    else:
        lo, length = lo_and_length(ranges_ptr, tl.zeros((1, 1), tl.int32), tl.full((1, 1), True, tl.int1), False)
    made = tl.load(source_ptr + element) if USUAL else tl.load(source_ptr + element, element < elements, 0)
    if CONFIG.quantize:
        rounded = rounded_level(made.to(tl.float32), lo, length, width, CONFIG.fused and USUAL)
        made = whole_number(rounded) if CONFIG.dequantize else integer(rounded)
    if CONFIG.dequantize:
        made = weight_of(made.to(tl.float32), lo, length, width)
    made = made.to(result_ptr.dtype.element_ty)
    if USUAL:
        tl.store(result_ptr + element, made)
    else:
        tl.store(result_ptr + element, made, element < elements)


@triton.jit(do_not_specialize=["elements"])
def requantize_kernel(source_ptr, widths_ptr, ranges_ptr, result_ptr, elements, CONFIG: tl.constexpr):
    """``level = round((w - lo) / (hi - lo) / step)`` (``quantize``), ``w = (level * step) * (hi - lo) + lo``
    (``dequantize``), or a weight by way of its levels (both).

    ``source_ptr`` [elements] float32|bf16|f16, or int32 levels, read
    ``widths_ptr`` [groups] uint8, read
    ``ranges_ptr`` [1 or groups, 2] float32, read
    ``result_ptr`` [elements] int32 levels, or weights float32|bf16|f16, written

    One program handles one tile of the weight.
    """
    usual = (tl.program_id(0).to(tl.int64) + 1) * (CONFIG.runs * CONFIG.run) <= elements
    if CONFIG.fused:
        usual = usual & may_fuse(ranges_ptr)
    if usual:
        _requantize_tile(source_ptr, widths_ptr, ranges_ptr, result_ptr, elements, CONFIG, True)
    else:
        _requantize_tile(source_ptr, widths_ptr, ranges_ptr, result_ptr, elements, CONFIG, False)
