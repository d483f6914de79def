"""Noisy weights and their gradients, the oracle's formula on pieces of each weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...reference.add_noise import range_gradient
from ...reference.bits import bits_from_logits, step_and_derivative, step_from_bits
from ...reference.groups import compute_dtype, flattened
from ...reference.options import NoiseOptions
from .philox import noise
from .pieces import array_of, group_sums, pieces_of, spread
from .registration import kernel
from .weight_range import split_ranges, weight_range


@kernel
def add_noise(weights, logits, key, streams, nonfinite, *options_and_dtype: Any):
    options, dtype = NoiseOptions.with_dtype(options_and_dtype)
    ranges, extremes = weight_range(weights, options.group_size, options.per_group)
    rows = split_ranges(weights, ranges, options.group_size, options.per_group)
    noisy = [
        _noisy_weight(weight, logit, row, (key, stream), options, dtype or weight.dtype)
        for weight, logit, row, stream in zip(weights, logits, rows, streams, strict=True)
    ]
    return noisy, ranges, extremes


def _noisy_weight(
    weight: Tensor, logit: Tensor, ranges: Tensor, source: tuple[Tensor, int], options: NoiseOptions, dtype: torch.dtype
) -> Tensor:
    """``source``: key and stream."""
    flat = flattened(weight)
    made = torch.empty(flat.shape, dtype=dtype, device=weight.device)
    for begin, end, groups in pieces_of(len(flat), options.group_size, weight.device):
        amplitude = _steps(logit[groups], *options.rule).mul_(_lengths(ranges, groups, options))
        z = noise(*source, begin, end - begin, options.noise_kind).to(flat.dtype)
        z.mul_(spread(amplitude, end - begin, options.group_size))
        torch.add(flat[begin:end], z, out=made[begin:end])
    return made.view(weight.shape)


def _steps(logit: Tensor, min_bits: float, max_bits: float, param: str) -> Tensor:
    """The oracle's, ``1 / (2**bits - 1)``, with fewer tensors."""
    t = torch.sigmoid(logit if logit.dtype == torch.float64 else logit.to(torch.float32))
    if param == "noise":
        return step_from_bits(bits_from_logits(logit, min_bits, max_bits, param))
    return t.mul_(max_bits - min_bits).add_(min_bits).exp2_().sub_(1).reciprocal_()


def _lengths(ranges: Tensor, groups: slice, options: NoiseOptions) -> Tensor:
    """Of each of the groups' ranges, or of the only one."""
    own = ranges[groups] if options.per_group else ranges
    return own[:, 1] - own[:, 0]


@kernel
def add_noise_backward(grads, weights, logits, ranges, extremes, key, streams, *options_: Any):
    options = NoiseOptions.from_operator(*options_)
    rows = split_ranges(weights, ranges, options.group_size, options.per_group)
    results = []
    for index, (grad, weight, logit, row) in enumerate(zip(grads, weights, logits, rows, strict=True)):
        source = key, streams[index]
        grad_logit, shares, nonfinite = _grad_logit(grad, logit, row, source, options, weight.dtype)
        ties = None if options.per_group else extremes[index, 2:]
        results.append((_grad_weight(grad, weight, row, (shares, ties), options), grad_logit, nonfinite))
    grad_weights, grad_logits, counts = zip(*results, strict=True)
    return list(grad_weights), list(grad_logits), torch.stack(counts).to(torch.float32)


def _grad_logit(
    grad: Tensor,
    logit: Tensor,
    ranges: Tensor,
    source: tuple[Tensor, int],
    options: NoiseOptions,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits' gradients; those of the ranges' lengths, ``[groups]`` or ``[1]``; and how many were not finite."""
    flat = grad.to(torch.float64 if dtype == torch.float64 else torch.float32).reshape(-1)
    double = torch.float64 if grad.device.type != "mps" else torch.float32
    sums = torch.zeros(len(logit), dtype=double, device=grad.device)
    for begin, end, groups in pieces_of(len(flat), options.group_size, grad.device):
        z = noise(*source, begin, end - begin, options.noise_kind).to(flat.dtype)
        sums[groups] += group_sums(z.mul_(flat[begin:end]), options.group_size)
    grad_logit, shares = torch.empty_like(sums, dtype=_steps_dtype(logit)), torch.empty_like(sums)
    for begin, end, groups in pieces_of(len(logit), 1, grad.device):
        step, derivative = step_and_derivative(logit[groups], *options.rule)
        grad_logit[begin:end] = derivative * sums[groups] * _lengths(ranges, groups, options)
        torch.mul(sums[groups], step, out=shares[groups])
    nonfinite = ~grad_logit.isfinite()
    shares = shares if options.per_group else shares.sum().view(1)
    return grad_logit.masked_fill_(nonfinite, 0), shares.to(flat.dtype), nonfinite.sum()


def _steps_dtype(logit: Tensor) -> torch.dtype:
    return torch.float64 if logit.dtype == torch.float64 else torch.float32


def _grad_weight(
    grad: Tensor, weight: Tensor, ranges: Tensor, shares_and_ties: tuple[Tensor, Tensor | None], options: NoiseOptions
) -> Tensor:
    """The gradient, with the shares carried to the elements at the ends of their ranges."""
    flat, (shares, ties) = flattened(weight), shares_and_ties
    flat_grad = grad.to(compute_dtype(weight)).reshape(-1)
    made = torch.empty(flat.shape, dtype=weight.dtype, device=weight.device)
    for begin, end, groups in pieces_of(len(flat), options.group_size, weight.device):
        own, values = flat_grad[begin:end], flat[begin:end]
        if ties is None:
            made[begin:end] = own + range_gradient(values, ranges[groups], shares[groups], options)
            continue
        made[begin:end] = own
        if values.device.type == "cpu":
            _share(made[begin:end], own, values, ranges[0], shares / ties.clamp(min=1))
            continue
        lo, hi = ranges[0].to(flat.dtype).unbind()
        low_share, high_share = torch.where(lo == hi, 0, shares / ties.clamp(min=1)).unbind()
        own = torch.where(values == hi, own + high_share, own)
        made[begin:end] = torch.where(values == lo, own - low_share, own)
    return made.view(weight.shape)


def _share(made: Tensor, grad: Tensor, values: Tensor, ends: Tensor, shares: Tensor) -> None:
    """Add the shares to the few elements at the ends, which numpy finds; nothing is waited for on a CPU."""
    lo, hi = array_of(ends.to(values.dtype))
    if lo == hi:
        return
    for end, share in ((lo, -shares[:1]), (hi, shares[1:])):
        places = torch.from_numpy(np.flatnonzero(array_of(values) == end))
        if len(places):
            made[places] = (grad[places] + share).to(made.dtype)
