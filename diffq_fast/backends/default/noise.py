"""Keys, and the noise that they give."""

from __future__ import annotations

import torch
from torch import Tensor

from . import philox
from .registration import kernel


@kernel
def draw_key(like: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=like.device).random_(-(2**63), None)


@kernel
def noise(key: Tensor, stream: int, begin: int, count: int, noise_kind: str) -> Tensor:
    z = philox.noise(key, stream, begin, count, noise_kind)
    return z.clone() if z.storage_offset() else z  # an operator returns no view into something larger
