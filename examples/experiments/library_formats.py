"""Integers of optimum-quanto and of torchao, by the libraries' own functions, on every matrix of a checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .peer_formats import State, is_packed

QUANTO_GROUP, TORCHAO_GROUP = 128, 32  # elements that share a scale, where there are 4 bits or fewer


def library_file(state: State, library: str, bits: int, path: Path) -> dict[str, Tensor]:
    """Write a safetensors file of what a library keeps of each matrix, the rest in float16; returns it as floats.

    library: ``quanto`` or ``torchao``. Scales are those of a half-precision checkpoint. Levels of torchao, which has
    each in a byte, are packed densely, and zero points that are all 0 are left out.
    """
    from safetensors.torch import save_file

    quantise = {"quanto": _quanto, "torchao": _torchao}[library]
    stored, made = {}, dict(state)
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        if not is_packed(tensor):
            stored[key] = tensor.half()
            made[key] = stored[key].float()
            continue
        quantised = quantise(tensor, bits)
        made[key] = quantised.dequantize().float()
        for place, part in enumerate(part for part in _parts(quantised) if part.any()):
            dense = library == "torchao" and part.dtype == torch.int8 and bits < 8
            stored[f"{key}.{place}"] = _two_in_a_byte(part) if dense else part.clone()
    save_file(stored, path)
    return made


def _quanto(tensor: Tensor, bits: int) -> Any:
    from optimum import quanto
    from optimum.quanto.tensor.weights import quantize_weight

    kind, weight = quanto.qtypes[f"qint{bits}"], tensor.half()
    if bits == 8:
        return quantize_weight(weight, kind, 0, quanto.AbsmaxOptimizer()(weight, kind, 0), optimized=False)
    scale, shift = quanto.MaxOptimizer()(weight, kind, 0, QUANTO_GROUP)
    return quantize_weight(weight, kind, 0, scale, shift, QUANTO_GROUP, optimized=False)


def _torchao(tensor: Tensor, bits: int) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    layer = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(tensor.bfloat16(), requires_grad=False)
    kind = getattr(torch, f"int{bits}")
    grouped = IntxWeightOnlyConfig(weight_dtype=kind, granularity=PerGroup(TORCHAO_GROUP))
    quantize_(layer, Int8WeightOnlyConfig() if bits == 8 else grouped)
    return layer.weight


def _parts(quantised: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor of a library is made of."""
    if not hasattr(quantised, "__tensor_flatten__"):
        yield quantised
        return
    names, _ = quantised.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(quantised, name))


def _two_in_a_byte(levels: Tensor) -> Tensor:
    """uint8: levels from -8 to 7, all of them in pairs."""
    pairs = (levels.reshape(-1, 2) & 15).to(torch.uint8)
    return pairs[:, 0] | pairs[:, 1] << 4
