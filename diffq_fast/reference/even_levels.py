"""Levels at even distances between a weight's minimum and maximum, in any number: fractional bits, one formula.

``bits`` may be fractional: 9.6 bits are floor(2**9.6) = 776 levels, 0 … 775. Plain torch operations, float32. Whole
numbers of bits give what the operators of :mod:`diffq_fast.functional` give, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def level_count(bits: float | Tensor) -> Tensor:
    """``floor(2**bits)``, float32, of the shape of ``bits``."""
    if not isinstance(bits, Tensor):
        bits = torch.tensor(float(bits), dtype=torch.float32, device="cpu")
    return torch.floor(2 ** bits.to(torch.float32))


def quantize_evenly(weight: Tensor, count: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """int32 levels ``round(((w - lo) / (hi - lo)) / u)``, ``u = 1 / (count - 1)``, half to even.

    ``count`` broadcasts to the weight; lo and hi are 0-dim float32. With lo = hi every level is 0.
    """
    length = hi - lo
    length = torch.where(length == 0, torch.ones_like(length), length)
    step = 1 / (count - 1)
    return torch.round(((weight.to(torch.float32) - lo) / length) / step).to(torch.int32)


def dequantize_evenly(levels: Tensor, count: Tensor, lo: Tensor, hi: Tensor, dtype: torch.dtype) -> Tensor:
    """``level * u * (hi - lo) + lo`` in float32, then cast to ``dtype``; the levels' shape."""
    step = 1 / (count - 1)
    return (levels.to(torch.float32) * step * (hi - lo) + lo).to(dtype)
