"""The oracle of ``add_uniform_noise`` and its gradient, for one weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import compute_dtype, flattened, grouped, per_element


def noisy_weight(
    weight: Tensor, steps: Tensor, noise: Tensor, group_size: int, dtype: torch.dtype | None = None
) -> Tensor:
    """``weight + step * noise`` in the weight's shape, rounded once to ``dtype`` (None: the weight's)."""
    flat = flattened(weight)
    spread = per_element(steps.to(flat.dtype), flat.numel(), group_size)
    return (flat + spread * noise.to(flat.dtype)).view(weight.shape).to(dtype or weight.dtype)


def step_gradient(grad: Tensor, steps: Tensor, noise: Tensor, group_size: int) -> Tensor:
    """The gradient of the steps ``[groups]``: the sums of ``grad * noise`` over the groups, in the steps' dtype."""
    products = grad.to(compute_dtype(grad)).reshape(-1).double() * noise.double()
    return grouped(products, group_size, 0.0).sum(1)[: steps.numel()].to(steps.dtype)
