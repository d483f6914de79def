"""Widths of logits, and how many groups have each."""

from __future__ import annotations

from torch import Tensor

from ...reference import bits
from ...reference import widths as reference
from .registration import kernel


@kernel
def widths_from_logits(logits: Tensor, min_bits: float, max_bits: float, param: str, extra_bits: float) -> Tensor:
    return bits.whole_bits_from_logits(logits, min_bits, max_bits, param, extra_bits)


@kernel
def count_widths(widths: Tensor) -> Tensor:
    return reference.count_widths(widths)
