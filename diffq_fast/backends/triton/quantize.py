"""Launchers of quantising and dequantising; meanings and shapes: ``diffq_fast/_ops.py``.

They read no value on the host: ``fake_quantize`` is part of a training step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...reference.sizes import group_count
from .. import default
from .arithmetic import INTERPRETED
from .launching import TYPES, launch, supported
from .quantize_kernels import RequantizeConfig, requantize_kernel

TILE = 2048


def quantize(weights, widths, ranges, group_size, per_group):
    if not supported(weights):
        return default.quantize(weights, widths, ranges, group_size, per_group)
    return _requantize_each(weights, widths, ranges, group_size, per_group, torch.int32)


def dequantize(levels, widths, ranges, group_size, per_group, dtype):
    if dtype not in TYPES or any(level.dtype != torch.int32 for level in levels):
        return default.dequantize(levels, widths, ranges, group_size, per_group, dtype)
    return _requantize_each(levels, widths, ranges, group_size, per_group, dtype)


def fake_quantize(weights, widths, ranges, group_size, per_group, dtype=None):
    if not supported(weights) or not (dtype is None or dtype in TYPES):
        return default.fake_quantize(weights, widths, ranges, group_size, per_group, dtype)
    return _requantize_each(weights, widths, ranges, group_size, per_group, dtype)


def _requantize_each(
    sources: Sequence[Tensor],
    widths: Sequence[Tensor],
    ranges: Tensor,
    group_size: int,
    per_group: bool,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    """Each source by itself, with its own ranges; results of ``dtype`` (None: each its source's)."""
    sizes = [group_count(source.numel(), group_size) if per_group else 1 for source in sources]
    return [
        _requantize(source, width, own, _config(source, group_size, per_group, dtype or source.dtype))
        for source, width, own in zip(sources, widths, ranges.contiguous().split(sizes), strict=True)
    ]


def _requantize(source: Tensor, widths: Tensor, ranges: Tensor, made: tuple[torch.dtype, RequantizeConfig]) -> Tensor:
    dtype, config = made
    result = torch.empty(source.shape, dtype=dtype, device=source.device)
    count = source.numel()
    arguments = source.contiguous(), widths.to(torch.uint8).contiguous(), ranges, result, count
    launch(requantize_kernel, -(-count // TILE), *arguments, CONFIG=config, enable_fp_fusion=False)
    return result


def _config(
    source: Tensor, group_size: int, per_group: bool, dtype: torch.dtype
) -> tuple[torch.dtype, RequantizeConfig]:
    """Levels of weights, weights of levels, or weights by way of levels, as the dtypes say (int32: levels)."""
    one_group = group_size == 0 or group_size >= source.numel()
    run = TILE if one_group else math.gcd(group_size, TILE)  # a power of two
    config = RequantizeConfig(
        group_size=0 if one_group else group_size,
        per_group=per_group,
        quantize=source.dtype != torch.int32,
        dequantize=dtype != torch.int32,
        fused=not (INTERPRETED or per_group),
        runs=TILE // run,
        run=run,
    )
    return dtype, config
