"""Registers the launchers as the CUDA kernels of the operators."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..._ops import lasting_library
from . import add_noise, noise, packed_rows, planes, quantize, uniform_noise, weight_range, weight_sizes, words

_library = lasting_library("IMPL")


def _device_of(arguments: tuple) -> torch.device:
    leading = arguments[0]
    return (leading if isinstance(leading, Tensor) else leading[0]).device


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
    noise.noise,
    weight_range.weight_range,
    add_noise.add_noise,
    add_noise.add_noise_backward,
    uniform_noise.add_uniform_noise,
    uniform_noise.add_uniform_noise_backward,
    weight_sizes.weight_sizes,
    weight_sizes.weight_sizes_backward,
    quantize.quantize,
    quantize.dequantize,
    quantize.fake_quantize,
    words.pack,
    words.unpack,
    words.quantize_pack,
    words.unpack_dequantize,
    packed_rows.unpack_rows,
    packed_rows.packed_linear,
    planes.pack_planes,
    planes.pack_planes_seen,
    planes.unpack_planes,
    planes.quantize_planes,
)
for _launcher in _LAUNCHERS:
    _library.impl(_launcher.__name__, _on_its_device(_launcher), "CUDA")
