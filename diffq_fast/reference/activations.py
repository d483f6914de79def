"""Rounding the inputs of layers: levels that are symmetric about zero, evenly spaced up to a range.

``docs/activations.md`` has the formulas. A range is the magnitude of the largest value that has a level of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import compute_dtype


def activation_step(range: Tensor, bits: Tensor | float) -> Tensor:
    """The distance of two levels, ``range / (2**(bits - 1) - 1)``, float32; differentiable in real-valued bits."""
    return range / (2 ** (bits - 1) - 1)


def clipped(x: Tensor, range: Tensor) -> Tensor:
    """``x`` between plus and minus the range, in the dtype that is computed in; the gradient is zero outside."""
    x = x.to(compute_dtype(x))
    limit = range.to(x.dtype)
    return torch.clamp(x, -limit, limit)


def round_activation(x: Tensor, range: Tensor, bits: Tensor | float) -> Tensor:
    """The level next to each element, ``step * round(x / step)`` within the range, in the dtype of ``x``.

    Computed in float32 (float64 of float64). Gradients go straight through: an element's is that of the result, or zero
    outside of the range; the step's is what :func:`activation_step` of bits that need one makes of the error in steps.
    """
    within = clipped(x, range)
    step = activation_step(range, bits).to(within.dtype)
    ratio = within / torch.where(step > 0, step, torch.ones_like(step))
    if torch.is_grad_enabled() and ratio.requires_grad:
        ratio = ratio.round().detach() + (ratio - ratio.detach())  # the value is that of round(), to the bit
    else:
        ratio = ratio.round()
    return (ratio * step).to(x.dtype)
