"""Registers the launchers as the CUDA kernels of the operators."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..._ops import NAMESPACE
from . import backward, export, forward

_library = torch.library.Library(NAMESPACE, "IMPL")


def _device_of(arguments: tuple) -> torch.device:
    first = arguments[0]
    return (first if isinstance(first, Tensor) else first[0]).device


def _on_its_device(launcher: Callable) -> Callable:
    """Triton launches on the current device: make that the tensors' own."""

    @functools.wraps(launcher)
    def kernel(*arguments):
        device = _device_of(arguments)
        if device.index == torch.cuda.current_device():
            return launcher(*arguments)
        with torch.cuda.device(device):
            return launcher(*arguments)

    return kernel


_LAUNCHERS = (
    forward.noise,
    forward.weight_range,
    forward.add_noise,
    backward.add_noise_backward,
    export.quantize,
    export.dequantize,
    export.fake_quantize,
    export.pack,
    export.unpack,
    export.quantize_pack,
    export.quantize_planes,
    export.unpack_dequantize,
    export.pack_planes,
    export.pack_planes_seen,
    export.unpack_planes,
)
for _launcher in _LAUNCHERS:
    _library.impl(_launcher.__name__, _on_its_device(_launcher), "CUDA")
