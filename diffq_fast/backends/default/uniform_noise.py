"""Weights with uniform noise of one step, and the gradients of the steps."""

from __future__ import annotations

from ...reference import uniform_noise as reference
from .philox import noise
from .registration import kernel


@kernel
def add_uniform_noise(weights, steps, key, streams, group_sizes, dtype=None):
    return [
        reference.noisy_weight(weight, step, noise(key, stream, 0, weight.numel(), "uniform"), group_size, dtype)
        for weight, step, stream, group_size in zip(weights, steps, streams, group_sizes, strict=True)
    ]


@kernel
def add_uniform_noise_backward(grads, steps, key, streams, group_sizes):
    return [
        reference.step_gradient(grad, step, noise(key, stream, 0, grad.numel(), "uniform"), group_size)
        for grad, step, stream, group_size in zip(grads, steps, streams, group_sizes, strict=True)
    ]
