"""Noise in given ranges, for one weight: the oracle of learned ranges, in plain torch.

``add_noise`` takes a weight's own extremes. Here the ranges are given, and what lies outside becomes the nearest end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import bits_from_logits, step_and_derivative, step_from_bits
from .groups import compute_dtype, flattened, grouped, per_element
from .options import NoiseOptions


def noisy_clipped_weight(
    weight: Tensor, logit: Tensor, ranges: Tensor, noise: Tensor, options: NoiseOptions, dtype: torch.dtype | None
) -> Tensor:
    """``clamp(weight, lo, hi) + ((hi - lo) * step) * noise``, differentiable in weight, logit and ranges.

    Args:
        ranges: ``[1, 2]`` or, with ``range_scope`` "group", ``[groups, 2]``; lo <= hi.
        noise: ``[count]``.
        dtype: of the result; None: the weight's.
    """
    flat = flattened(weight)
    ranges = ranges.to(flat.dtype)
    step = step_from_bits(bits_from_logits(logit, *options.rule)).to(flat.dtype)
    amplitude = per_element((ranges[:, 1] - ranges[:, 0]) * step, flat.numel(), options.group_size)
    noisy = clipped(weight, ranges, options) + amplitude * noise.to(flat.dtype)
    return noisy.view(weight.shape).to(dtype or weight.dtype)


def clipped(weight: Tensor, ranges: Tensor, options: NoiseOptions) -> Tensor:
    """``clamp(weight, lo, hi)``, flat, in the dtype of the weight's arithmetic."""
    flat = flattened(weight)
    ranges = ranges.to(flat.dtype)
    return torch.clamp(_rows(flat, options), ranges[:, :1], ranges[:, 1:]).reshape(-1)[: flat.numel()]


def noisy_clipped_weight_backward(
    grad: Tensor, weight: Tensor, logit: Tensor, ranges: Tensor, noise: Tensor, options: NoiseOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of :func:`noisy_clipped_weight`: of weight, logit and ranges."""
    flat_grad = grad.to(compute_dtype(weight)).reshape(-1)
    ranges = ranges.to(flat_grad.dtype)
    step, derivative = (each.to(flat_grad.dtype) for each in step_and_derivative(logit, *options.rule))
    sums = grouped(flat_grad * noise.to(flat_grad.dtype), options.group_size, 0.0).sum(1)[: len(step)]
    grad_logit = (ranges[:, 1] - ranges[:, 0]) * sums * derivative
    of_length = sums * step if options.per_group else (sums * step).sum().view(1)
    grad_weight, grad_ranges = clipping_gradients(flat_grad, weight, ranges, of_length, options)
    return grad_weight, grad_logit.to(logit.dtype), grad_ranges


def rounded_weight_backward(
    grad: Tensor, weight: Tensor, rounded: Tensor, ranges: Tensor, options: NoiseOptions
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and ranges where the weight is shown ``rounded``.

    The rounded weight is ``clamp(weight, lo, hi) + (hi - lo) * share``, and the shares are taken as fixed.
    """
    flat_grad = grad.to(compute_dtype(weight)).reshape(-1)
    ranges = ranges.to(flat_grad.dtype)
    errors = flattened(rounded).to(flat_grad.dtype) - clipped(weight, ranges, options)
    length = ranges[:, 1] - ranges[:, 0]
    of_length = torch.where(length > 0, _rows(errors * flat_grad, options).sum(1) / length, 0.0)
    return clipping_gradients(flat_grad, weight, ranges, of_length, options)


def clipping_gradients(
    flat_grad: Tensor, weight: Tensor, ranges: Tensor, of_length: Tensor, options: NoiseOptions
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and ranges where ``flat_grad`` is that of ``clamp(weight, lo, hi) + (hi - lo) * share``.

    An element that lies outside gives its own to the end. ``of_length``: those of hi - lo, one for each range.
    """
    elements, grads = _rows(flattened(weight), options), _rows(flat_grad, options)
    below, above = elements < ranges[:, :1], elements > ranges[:, 1:]
    to_lo, to_hi = (torch.where(outside, grads, 0.0).sum(1) for outside in (below, above))
    inside = torch.where(below | above, 0.0, grads).reshape(-1)[: flat_grad.numel()]
    return inside.view(weight.shape).to(weight.dtype), torch.stack([to_lo - of_length, to_hi + of_length], dim=1)


def _rows(flat: Tensor, options: NoiseOptions) -> Tensor:
    """``[ranges, elements]``; a shorter last group is filled up with zeros."""
    return grouped(flat, options.group_size, 0.0) if options.per_group else flat[None]
