"""The oracle of ``add_noise`` and its gradients, for one weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .bits import bits_from_logits, step_and_derivative, step_from_bits
from .groups import compute_dtype, flattened, grouped, per_element
from .options import NoiseOptions
from .weight_range import weight_range


def noisy_weight(
    weight: Tensor, logit: Tensor, noise: Tensor, options: NoiseOptions, dtype: torch.dtype | None = None
) -> Tensor:
    """``weight + (range * step) * noise`` in the weight's shape, differentiable in weight and logit.

    Rounded once, half to even, to ``dtype`` (None: the weight's).
    """
    flat = flattened(weight)
    step = step_from_bits(bits_from_logits(logit, *options.rule)).to(flat.dtype)
    ranges = weight_range(weight, options.group_size, options.per_group)
    amplitude = (ranges[:, 1] - ranges[:, 0]) * step
    noisy = flat + per_element(amplitude, flat.numel(), options.group_size) * noise.to(flat.dtype)
    return noisy.view(weight.shape).to(dtype or weight.dtype)


def noisy_weight_backward(
    grad: Tensor, weight: Tensor, logit: Tensor, ranges: Tensor, noise: Tensor, options: NoiseOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`noisy_weight` given the ranges of the forward, ``[1 or groups, 2]``.

    ``grad`` may be of another dtype than the weight. Returns the gradient of the weight, the gradient of the logit with
    its non-finite entries put to zero, and how many those were (0-dim).
    """
    flat_grad = grad.to(compute_dtype(weight)).reshape(-1)
    flat = flattened(weight)
    step, derivative = step_and_derivative(logit, *options.rule)
    group_sums = grouped(flat_grad.double() * noise.double(), options.group_size, 0.0).sum(1)
    lengths = ranges[:, 1].double() - ranges[:, 0].double()
    grad_logit = (lengths * group_sums * derivative.double()).to(step.dtype)

    amplitude_grads = group_sums * step.double()
    range_grad = amplitude_grads if options.per_group else amplitude_grads.sum().view(1)
    grad_flat = flat_grad + range_gradient(flat, ranges, range_grad.to(flat.dtype), options)
    nonfinite = ~grad_logit.isfinite()
    return grad_flat.view(weight.shape).to(weight.dtype), grad_logit.masked_fill(nonfinite, 0), nonfinite.sum()


def noisy_weight_second_backward(
    grads: tuple[Tensor | None, Tensor | None], inputs: Sequence[Tensor], noise: Tensor, options: NoiseOptions
) -> tuple[Tensor | None, ...]:
    """Gradients of :func:`noisy_weight_backward` with respect to its ``inputs``: grad, weight and logit.

    Differentiable in its turn. ``grads`` belong to the gradients of weight and logit; None: it took no part. Elements
    at the minimum or the maximum are taken to stay there. All None where both took no part.
    """
    used = [index for index, each in enumerate(grads) if each is not None]
    if not used:
        return None, None, None
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [each if create_graph and each.requires_grad else each.detach().requires_grad_() for each in inputs]
        grad, weight, logit = inputs
        ranges = weight_range(weight, options.group_size, options.per_group)
        made = noisy_weight_backward(grad, weight, logit, ranges, noise, options)
        chosen = [made[index] for index in used], inputs, [grads[index] for index in used]
        return torch.autograd.grad(*chosen, create_graph=create_graph, allow_unused=True)


def range_gradient(flat: Tensor, ranges: Tensor, range_grad: Tensor, options: NoiseOptions) -> Tensor:
    """``range_grad`` carried to the elements at the maximum and, with the other sign, at the minimum."""
    groups = grouped(flat, options.group_size, float("nan")) if options.per_group else flat.view(1, -1)
    at_max = (groups == ranges[:, 1:]).to(flat.dtype)
    at_min = (groups == ranges[:, :1]).to(flat.dtype)
    shares = at_max / at_max.sum(1, keepdim=True).clamp(min=1) - at_min / at_min.sum(1, keepdim=True).clamp(min=1)
    carried = torch.where(shares != 0, shares * range_grad[:, None], 0)  # an infinite gradient reaches these alone
    return carried.reshape(-1)[: flat.numel()]
