"""Noise through the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from ..default.philox import check_elements
from .loading import core
from .registration import kernel
from .tensors import NOISE_KINDS, empty, guard_noise


@kernel
def noise(key: Tensor, stream: int, begin: int, count: int, noise_kind: str) -> Tensor:
    check_elements(begin, count)
    z = empty([count], torch.float32)
    guard_noise("noise", [z], [z], key, [stream], 1)
    core.noise(key.data_ptr(), stream, begin, count, NOISE_KINDS[noise_kind], z.data_ptr(), torch.get_num_threads())
    return z
