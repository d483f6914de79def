"""Noisy weights and their gradients through the compiled core."""

from __future__ import annotations

import torch

from .. import default
from .loading import core
from .registration import kernel
from .tensors import (
    DTYPES,
    NOISE_KINDS,
    PARAMS,
    addresses,
    contiguous,
    empty_like,
    empty_ranges,
    floats,
    guard_extremes,
    guard_groups,
    guard_noise,
    guard_ranges,
    guard_tensors,
    supported,
)


@kernel
def add_noise(weights, logits, key, streams, nonfinite, *options_and_dtype):
    group_size, min_bits, max_bits, param, noise_kind, per_group = options = options_and_dtype[:6]
    dtype = options_and_dtype[6] if len(options_and_dtype) > 6 else None
    guard_noise("add_noise", weights, logits, key, streams, group_size)
    if not supported(weights, logits) or not (dtype is None or dtype in DTYPES):
        return default.add_noise(weights, logits, key, streams, nonfinite, *options, dtype)
    weights, logits = contiguous(weights), contiguous(logits, torch.float32)
    noisy = empty_like(weights, dtype)
    ranges, extremes = empty_ranges(weights, group_size, per_group)
    codes = group_size, min_bits, max_bits, PARAMS[param], NOISE_KINDS[noise_kind], per_group
    noise = floats(weights), addresses(logits), key.data_ptr(), streams, codes
    places = ranges.data_ptr(), extremes.data_ptr()
    core.add_noise(noise, places, floats(noisy), torch.get_num_threads())
    return noisy, ranges, extremes


@kernel
def add_noise_backward(grads, weights, logits, ranges, extremes, key, streams, *options):
    who = "add_noise_backward"
    group_size, min_bits, max_bits, param, noise_kind, per_group = options
    guard_noise(who, weights, logits, key, streams, group_size)
    guard_tensors(who, grads, [ranges, extremes])
    if not supported(grads, weights, logits):
        return default.add_noise_backward(grads, weights, logits, ranges, extremes, key, streams, *options)
    guard_extremes(who, extremes, 0 if per_group else len(weights))
    guard_groups(who, "grads", grads, [weight.numel() for weight in weights], 1)
    guard_ranges(who, ranges, weights, group_size, per_group)
    shapes = logits
    grads, weights, logits = contiguous(grads), contiguous(weights), contiguous(logits, torch.float32)
    ranges, extremes = ranges.contiguous(), extremes.contiguous()
    grad_weights, grad_logits = empty_like(weights), empty_like(shapes, torch.float32)
    nonfinite = torch.empty(len(weights), dtype=torch.float32, device="cpu")
    codes = group_size, min_bits, max_bits, PARAMS[param], NOISE_KINDS[noise_kind], per_group
    noise = floats(weights), addresses(logits), key.data_ptr(), streams, codes
    places = ranges.data_ptr(), extremes.data_ptr()
    results = addresses(grad_weights), addresses(grad_logits), nonfinite.data_ptr()
    core.add_noise_backward(noise, places, floats(grads), results, torch.get_num_threads())
    return grad_weights, grad_logits, nonfinite
