"""Rounded weights in training, with gradients for the float weights that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """The last third of the tensors; their gradients go to the first third, zeros to the second."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(tensors) // 3
        ctx.dtypes = [weight.dtype for weight in tensors[:count]]
        ctx.logits = [(logit.shape, logit.dtype) for logit in tensors[count : 2 * count]]
        return tuple(rounded.view_as(rounded) for rounded in tensors[2 * count :])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights = [grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)]
        logits = [grad.new_zeros(shape, dtype=dtype) for grad, (shape, dtype) in zip(grads, ctx.logits, strict=True)]
        return (*weights, *logits, *[None] * len(grads))


def straight_through(weights: Sequence[Tensor], logits: Sequence[Tensor], rounded: Sequence[Tensor]) -> list[Tensor]:
    """``rounded``, each with its gradient passed on to its weight, in the weight's dtype, as if it were the weight.

    The logits get the gradient zero: a distributed wrapper waits for the gradient of every parameter that it has seen.
    """
    if not torch.is_grad_enabled():
        return list(rounded)
    return list(_StraightThrough.apply(*weights, *logits, *rounded))
