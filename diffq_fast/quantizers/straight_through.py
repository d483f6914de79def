"""Rounded weights in training, with gradients for the float weights that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """Of the tensors behind ``count``, that many weights, and that many rounded ones, which are the result. The weights
    get their gradients, and what comes behind them zeros."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [weight.dtype for weight in tensors[:count]]
        ctx.others = [(other.shape, other.dtype) for other in tensors[2 * count :]]
        return tuple(rounded.view_as(rounded) for rounded in tensors[count : 2 * count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights = [grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)]
        others = [grads[0].new_zeros(shape, dtype=dtype) for shape, dtype in ctx.others]
        return (None, *weights, *[None] * len(grads), *others)


def straight_through(
    weights: Sequence[Tensor], rounded: Sequence[Tensor], others: Sequence[Tensor] = ()
) -> list[Tensor]:
    """``rounded``, each with its gradient passed on to its weight, in the weight's dtype, as if it were the weight.

    ``others`` get the gradient zero: a distributed wrapper waits for the gradient of every parameter that it has seen.
    """
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (*weights, *others)):
        return list(rounded)
    return list(_StraightThrough.apply(len(weights), *weights, *rounded, *others))
