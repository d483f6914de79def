"""The peers on a GPU: DiffQ's formula (docs/method.md) in plain PyTorch, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def noisy_weight(weight: Tensor, logit: Tensor, noise: Tensor, group_size: int) -> Tensor:
    """``weight + (range * step) * noise`` with bits between 2 and 15; range and step are differentiable."""
    t = torch.sigmoid(logit)
    bits = 15.0 * t + (1 - t) * 2.0
    step = 1 / (2**bits - 1)
    length = weight.max() - weight.min()
    groups = weight.view(-1, group_size) + (length * step)[:, None] * noise.view(-1, group_size)
    return groups.view(weight.shape)


def add_noise(weights: Sequence[Tensor], logits: Sequence[Tensor], group_size: int, noise_kind: str) -> list[Tensor]:
    """Noisy weights with PyTorch's own random numbers."""
    noisy = []
    for weight, logit in zip(weights, logits, strict=True):
        noise = torch.rand_like(weight) - 0.5 if noise_kind == "uniform" else torch.randn_like(weight) / 2
        noisy.append(noisy_weight(weight, logit, noise, group_size))
    return noisy


# Settings of torch.compile that are tried; the best one counts, and its name is told.
COMPILED = {
    "default": {},
    "max-autotune-no-cudagraphs": {"mode": "max-autotune-no-cudagraphs"},
    "reduce-overhead": {"mode": "reduce-overhead"},
    "combo kernels": {"options": {"combo_kernels": True, "benchmark_combo_kernel": False}},
}


def compiled_peer(setting: str) -> Callable[..., list[Tensor]]:
    return torch.compile(add_noise, dynamic=False, **COMPILED[setting])
