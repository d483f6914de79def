"""Quantisation-aware training that starts from half-quadratic quantisation (HQQ): its levels, scales and zeros."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .peer_formats import hqq, hqq_parts, hqq_values, is_packed


class HqqLevels(nn.Module):
    """A weight as the values of its levels, each ``group`` elements with a scale and a zero of their own.

    Gradients go straight through the rounding: to the weight where its level is in range, and to the scale (in its
    logarithm) and the zero as they are.
    """

    def __init__(self, weight: Tensor, bits: int, group: int) -> None:
        super().__init__()
        self.bits, self.group = bits, group
        _, scale, zero = hqq(weight.detach().reshape(-1, group), bits)
        self.log_scale = nn.Parameter(scale.float().log())
        self.zero = nn.Parameter(zero.float())

    def forward(self, weight: Tensor) -> Tensor:
        scale, zero = _in_float16(self.log_scale.exp()), _in_float16(self.zero)
        place = (weight.reshape(-1, self.group) / scale + zero).clamp(0, 2**self.bits - 1)
        level = place + (place.round() - place).detach()
        return ((level - zero) * scale).view(weight.shape)

    @torch.no_grad()
    def stored(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Levels [groups, size], and scales and zeros in float16."""
        scale, zero = self.log_scale.exp().half(), self.zero.half()
        place = weight.reshape(-1, self.group) / scale.float() + zero.float()
        return place.round().clamp(0, 2**self.bits - 1), scale, zero


def _in_float16(values: Tensor) -> Tensor:
    """As the file has them; their gradients pass."""
    return values + (values.half().float() - values).detach()


def attach_hqq(model: nn.Module, bits: int, group: int) -> list[nn.Parameter]:
    """Quantise every matrix in every forward; returns the scales and zeros, to be learned beside the weights."""
    for module, name in list(_matrices(model)):
        parametrize.register_parametrization(module, name, HqqLevels(getattr(module, name), bits, group))
    return [each for layer in _levels(model).values() for each in layer.parameters()]


def save_hqq(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Write what :func:`attach_hqq` has made of a model, the rest in float16; returns what the file holds, as floats.

    The file is laid out as HQQ's own rows' are.
    """
    from safetensors.torch import save_file

    layers, stored, made = _levels(model), {}, {}
    for key, tensor in model.state_dict().items():
        owner, _, part = key.partition(".parametrizations.")
        if not part:
            stored[key] = tensor.half() if tensor.is_floating_point() else tensor
            made[key] = stored[key].to(tensor.dtype)
        elif part.endswith(".original"):
            name = f"{owner}.{part.removesuffix('.original')}"
            layer = layers[name]
            parts = layer.stored(tensor)
            stored |= hqq_parts(name, layer.bits, *parts)
            made[name] = hqq_values(*parts).view(tensor.shape)
    save_file(stored, path)
    return made


def _matrices(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if is_packed(parameter):
                yield module, name


def _levels(model: nn.Module) -> dict[str, HqqLevels]:
    """By the weight's full name."""
    return {
        f"{path}.{name}": each[0]
        for path, module in model.named_modules()
        if isinstance(found := getattr(module, "parametrizations", None), nn.ModuleDict)
        for name, each in found.items()
    }
