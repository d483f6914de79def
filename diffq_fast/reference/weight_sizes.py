"""The oracle of ``weight_sizes``, for one weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import bits_derivative, bits_from_logits


def weight_size(
    logits: Tensor, count: int, group_size: int, min_bits: float, max_bits: float, param: str, extra_bits: float
) -> Tensor:
    """Bits of ``count`` elements and of their table of widths, 0-dim; differentiable in logits, but for the table."""
    if not count:
        return logits.sum()
    used = extra_bits + bits_from_logits(logits, min_bits, max_bits, param)
    lowest = min_bits if extra_bits >= 0 else used.detach().amin().round().clamp(max=min_bits)
    return elements_sum(used, count, group_size) + len(used) * table_bits(lowest, used.detach().amax())


def weight_size_backward(
    grad: Tensor, logits: Tensor, count: int, group_size: int, min_bits: float, max_bits: float, param: str
) -> Tensor:
    """The gradient of the logits, given that of :func:`weight_size`; differentiable itself."""
    slopes = bits_derivative(logits, min_bits, max_bits, param)
    if not count:
        return slopes
    size = group_size or count
    last = count - (len(slopes) - 1) * size
    return grad * torch.cat([size * slopes[:-1], last * slopes[-1:]])


def elements_sum(per_group: Tensor, count: int, group_size: int) -> Tensor:
    """Sum over a weight's ``count`` elements of a value per group."""
    size = group_size or count
    last = count - (len(per_group) - 1) * size
    return size * per_group[:-1].sum() + last * per_group[-1]


def table_bits(lowest: Tensor | float, highest: Tensor) -> Tensor:
    """Bits of one entry of a weight's table of widths, for bits from ``lowest`` to ``highest``."""
    return torch.ceil(torch.log2((1 + highest.round() - lowest).clamp(min=1)))
