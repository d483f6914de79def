"""Put the packed weights of a file into a model's layers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..packed.contents import PackedContents
from .layers import pack_parameter, packable_parameters
from .weight import PackedWeight


def packed_weights(
    model: nn.Module,
    contents: PackedContents,
    keys: Mapping[str, Hashable],
    wanted: Mapping[str, str],
    activations: str = "float",
) -> dict[str, PackedWeight]:
    """The weights that layers of the model can keep packed, by name in its state_dict; the model is not changed.

    Args:
        keys: the memory of the model's tensors, by name. One tensor under several names stays packed if every place
            takes it so.
        wanted: name in the model -> name in the file, of all quantised weights.
        activations: "float" or "int8", how linear layers take their inputs.
    """
    places = {name: module for name, module, _ in _places(model)}
    refused = {keys[name] for name in wanted if name not in places}
    made: dict[tuple[str, Any, Any], PackedWeight] = {}
    weights = {}
    for name, stored in wanted.items():
        packed = contents.packed[stored]
        if keys[name] in refused or len(packed.shape) < 2 or packed.count == 0:
            continue
        target: Tensor = places[name].get_parameter(name.rpartition(".")[2])
        kind = stored, target.dtype, target.device
        if kind not in made:
            made[kind] = _made(contents, stored, (packed, target.dtype, activations)).to(target.device)
        weights[name] = made[kind]
    return weights


def put_packed(model: nn.Module, weights: Mapping[str, PackedWeight]) -> None:
    """Take the parameters of these names out of their layers, and put the packed weights in their places."""
    for name, module, parameter in list(_places(model)):
        if name in weights and parameter in module._parameters:  # a module may stand at several places
            pack_parameter(module, parameter, weights[name])


def _made(contents: PackedContents, name: str, arguments: tuple[Any, ...]) -> PackedWeight:
    """Damaged streams are told with the weight's name."""
    with contents.naming(name):
        return PackedWeight(*arguments)


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name in the state_dict, module, name of its parameter) of every weight that a packed layer can hold."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for parameter in packable_parameters(module):
            yield f"{prefix}.{parameter}" if prefix else parameter, module, parameter
