"""Noisy weights and their gradients."""

from __future__ import annotations

from typing import Any

import torch

from ...reference import add_noise as reference
from ...reference.options import NoiseOptions
from ...reference.philox import noise
from .registration import kernel
from .weight_range import split_ranges, weight_range


@kernel
def add_noise(weights, logits, key, streams, nonfinite, *options_and_dtype: Any):
    options, dtype = NoiseOptions.with_dtype(options_and_dtype)
    noisy = [
        reference.noisy_weight(weight, logit, noise(key, stream, 0, weight.numel(), options.noise_kind), options, dtype)
        for weight, logit, stream in zip(weights, logits, streams, strict=True)
    ]
    return noisy, *weight_range(weights, options.group_size, options.per_group)


@kernel
def add_noise_backward(grads, weights, logits, ranges, extremes, key, streams, *options_: Any):
    options = NoiseOptions.from_operator(*options_)
    rows = split_ranges(weights, ranges, options.group_size, options.per_group)
    results = [
        reference.noisy_weight_backward(
            grad, weight, logit, row, noise(key, stream, 0, weight.numel(), options.noise_kind), options
        )
        for grad, weight, logit, row, stream in zip(grads, weights, logits, rows, streams, strict=True)
    ]
    grad_weights, grad_logits, nonfinite = zip(*results, strict=True)
    return list(grad_weights), list(grad_logits), torch.stack(nonfinite).to(torch.float32)
