"""Weights with uniform noise of one step, and the gradients of the steps, through the compiled core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import default
from .loading import core
from .registration import kernel
from .tensors import (
    DTYPES,
    addresses,
    contiguous,
    empty_like,
    floats,
    guard_groups,
    guard_noise,
    supported,
)


@kernel
def add_uniform_noise(weights, steps, key, streams, group_sizes, dtype=None):
    _guard("add_uniform_noise", weights, steps, key, streams, group_sizes)
    if not supported(weights) or not _are_single(steps) or not (dtype is None or dtype in DTYPES):
        return default.add_uniform_noise(weights, steps, key, streams, group_sizes, dtype)
    weights, steps = contiguous(weights), contiguous(steps)
    noisy = empty_like(weights, dtype)
    noise = key.data_ptr(), streams, group_sizes
    core.add_uniform_noise(noise, floats(weights), addresses(steps), floats(noisy), torch.get_num_threads())
    return noisy


@kernel
def add_uniform_noise_backward(grads, steps, key, streams, group_sizes):
    _guard("add_uniform_noise_backward", grads, steps, key, streams, group_sizes)
    if not supported(grads) or not _are_single(steps):
        return default.add_uniform_noise_backward(grads, steps, key, streams, group_sizes)
    grads, grad_steps = contiguous(grads), empty_like(steps)
    noise = key.data_ptr(), streams, group_sizes
    core.add_uniform_noise_backward(noise, floats(grads), addresses(grad_steps), torch.get_num_threads())
    return grad_steps


def _are_single(steps: Sequence[Tensor]) -> bool:
    return all(each.dtype == torch.float32 for each in steps)


def _guard(
    who: str,
    weights: Sequence[Tensor],
    steps: Sequence[Tensor],
    key: Tensor,
    streams: Sequence[int],
    group_sizes: Sequence[int],
) -> None:
    """The key's 64 bits, one stream and group size for each weight, and one step for each of its groups."""
    if not len(weights) == len(steps) == len(group_sizes):
        given = f"{len(steps)} steps and {len(group_sizes)} group_sizes"
        raise ValueError(f"{who}: expected {len(weights)} of each, one per weight, got {given}")
    guard_noise(who, [], [], key, [], 0)
    for weight, step, stream, group_size in zip(weights, steps, streams, group_sizes, strict=True):
        guard_groups(who, "steps", [step], [weight.numel()], group_size)
        guard_noise(who, [weight], [step], key, [stream], group_size)
