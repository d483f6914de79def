"""Launcher of the noise alone; meaning and shapes: ``diffq_fast/_ops.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.options import check_kind
from .arguments import Config
from .launching import PTX, STEP, launch
from .noise_kernels import noise_kernel


def noise(key: Tensor, stream: int, begin: int, count: int, noise_kind: str) -> Tensor:
    check_kind("noise", noise_kind)
    z = torch.empty(count, dtype=torch.float32, device=key.device)
    programs = -(-(begin % STEP + count) // STEP) if count else 0
    config = Config(ptx=PTX, noise_kind=noise_kind, tile=STEP)
    launch(noise_kernel, programs, key, stream, begin, count, z, CONFIG=config)
    return z
