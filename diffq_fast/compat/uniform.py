"""diffq's module ``diffq.uniform``: uniform quantisation of a tensor, and the quantizer that does it to a model."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ..quantizers.uniform import UniformQuantizer
from ..reference.even_levels import dequantize_evenly, level_count, quantize_evenly

__all__ = ["UniformQuantizer", "uniform_quantize", "uniform_unquantize"]

_EIGHT = torch.tensor(8.0, dtype=torch.float32, device="cpu")


def uniform_quantize(p: Tensor, bits: Tensor | float = _EIGHT) -> tuple[Tensor, tuple[float, float]]:
    """Levels of a tensor at even distances between its minimum and maximum, and these two.

    Args:
        p: any real tensor; computed in float32.
        bits: 1 … 15, a number or a tensor that broadcasts to ``p``; floor(2**bits) levels.

    Returns:
        (levels of ``p``'s shape, (min, max)): uint8 if every ``bits`` is at most 8, else int16.

    Raises:
        ValueError: ``bits`` outside 1 … 15, or a NaN or infinite element.

    >>> uniform_quantize(torch.tensor([0.0, 1.0, 3.0]), 2)
    (tensor([0, 1, 3], dtype=torch.uint8), (0.0, 3.0))
    """
    counts = _level_count("uniform_quantize", bits).to(p.device)
    flat = p.detach().to(torch.float32)
    lo, hi = functional.weight_range([flat])[0]
    if not bool((lo - lo == 0) & (hi - hi == 0)):
        raise ValueError("uniform_quantize: p has NaN or infinite elements")
    levels = quantize_evenly(flat, counts, lo, hi)
    return levels.to(torch.uint8 if bool((counts <= 256).all()) else torch.int16), (float(lo), float(hi))


def uniform_unquantize(levels: Tensor, scales: tuple[float, float], bits: Tensor | float = _EIGHT) -> Tensor:
    """The float32 tensor that :func:`uniform_quantize` took ``levels`` and ``scales`` = (min, max) from, rounded.

    >>> uniform_unquantize(torch.tensor([0, 1, 3]), (0.0, 3.0), 2)
    tensor([0., 1., 3.])
    """
    counts = _level_count("uniform_unquantize", bits).to(levels.device)
    lo, hi = torch.tensor(scales, dtype=torch.float32, device=levels.device)
    return dequantize_evenly(levels, counts, lo, hi, torch.float32)


def _level_count(who: str, bits: Tensor | float) -> Tensor:
    if not isinstance(bits, Tensor):
        bits = torch.tensor(bits, dtype=torch.float32, device="cpu")
    if not bool(((bits >= 1) & (bits <= 15)).all()):
        raise ValueError(f"{who}: bits must be between 1 and 15, got {bits.tolist()!s:.80}")
    return level_count(bits)
