"""torch's layers with weights that stay packed. They are instances of torch's classes, and what reads ``layer.weight``
gets the weight, unpacked for this once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .weight import PackedWeight


class WeightCopy(Tensor):
    """An unpacked weight. Its ``data`` cannot be set, by which PEFT, to merge adapters, means to change a layer."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:
        return super().data

    @data.setter
    def data(self, value: Tensor) -> None:
        raise AttributeError(
            "the weight is packed, and this a copy that the layer does not read; load the model without packed=True "
            "to change it, or to merge adapters"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """An ordinary tensor, which may be changed."""
        return memo.setdefault(id(self), self.clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.clone().__reduce_ex__(protocol)


class PackedParameters(nn.Module):
    """Beside a class of torch: weights, by name, that are unpacked when they are read.

    Each is a :class:`.PackedWeight`, a submodule of the name ``packed_<name>``.
    """

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("packed_"):
            packed = self.__dict__["_modules"].get(f"packed_{name}")
            if packed is not None:
                weight = packed.unpack()
                return weight if type(weight) is not Tensor or is_compiling() else weight.as_subclass(WeightCopy)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """A weight that is packed cannot be set: the forward would go on with the packed one."""
        if f"packed_{name}" in self.__dict__.get("_modules", ()):
            raise AttributeError(
                f"{type(self).__name__}: {name} is packed and cannot be replaced; put a new layer in this one's place, "
                "or load the model without packed=True"
            )
        super().__setattr__(name, value)


class PackedLinear(PackedParameters, nn.Linear):
    """A linear layer that multiplies with its packed weight."""

    def forward(self, input: Tensor) -> Tensor:
        return self.packed_weight.linear(input, self.bias)


class PackedOutputProjection(PackedParameters, NonDynamicallyQuantizableLinear):
    """That of :class:`torch.nn.MultiheadAttention`, which reads its weight."""


class PackedEmbedding(PackedParameters, nn.Embedding):
    """An embedding that unpacks the rows which it looks up. ``max_norm`` is applied to those, and not to the table."""

    def forward(self, input: Tensor) -> Tensor:
        vectors = self.packed_weight.rows(input)
        if self.max_norm is not None:
            norms = vectors.norm(self.norm_type, -1, keepdim=True)
            vectors = torch.where(norms > self.max_norm, vectors * (self.max_norm / (norms + 1e-7)), vectors)
        return vectors


class PackedMultiheadAttention(PackedParameters, nn.MultiheadAttention):
    """Its projections are unpacked in each forward."""


class PackedRecurrent(nn.Module):
    """Before PackedParameters: recurrent layers hand all their weights to one function of torch's."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As torch's. It reads the weights several times: they are unpacked once, and dropped behind it."""
        if is_compiling():
            return super().forward(input, hx)
        self.__dict__["_flat_weights"] = self._unpacked_weights()
        try:
            return super().forward(input, hx)
        finally:
            self.__dict__.pop("_flat_weights", None)  # another thread's, too, which then makes its own

    def __getattr__(self, name: str) -> Any:
        return self._unpacked_weights() if name == "_flat_weights" else super().__getattr__(name)

    def _unpacked_weights(self) -> list[Tensor]:
        packed: dict[str, Any] = {name: self._modules.get(f"packed_{name}") for name in self._flat_weights_names}
        return [getattr(self, name) if each is None else each.unpack() for name, each in packed.items()]

    def _update_flat_weights(self) -> None:
        """Nothing to do, as torch's would unpack all weights to see whether one is another."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_flat_weights":  # torch's code keeps them; they would stay unpacked
            super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.pop("_flat_weights", None)

    def flatten_parameters(self) -> None:
        """Nothing to do: the weights are made in each forward."""


class PackedLSTM(PackedRecurrent, PackedParameters, nn.LSTM):
    """Its weights are unpacked in each forward."""


class PackedGRU(PackedRecurrent, PackedParameters, nn.GRU):
    """Its weights are unpacked in each forward."""


class PackedRNN(PackedRecurrent, PackedParameters, nn.RNN):
    """Its weights are unpacked in each forward."""


class PackedConv1d(PackedParameters, nn.Conv1d):
    """Its weight is unpacked in each forward."""


class PackedConv2d(PackedParameters, nn.Conv2d):
    """Its weight is unpacked in each forward."""


class PackedConv3d(PackedParameters, nn.Conv3d):
    """Its weight is unpacked in each forward."""


class PackedConvTranspose1d(PackedParameters, nn.ConvTranspose1d):
    """Its weight is unpacked in each forward."""


class PackedConvTranspose2d(PackedParameters, nn.ConvTranspose2d):
    """Its weight is unpacked in each forward."""


class PackedConvTranspose3d(PackedParameters, nn.ConvTranspose3d):
    """Its weight is unpacked in each forward."""


PACKED_CLASSES: dict[type[nn.Module], type[PackedParameters]] = {
    nn.Linear: PackedLinear,
    NonDynamicallyQuantizableLinear: PackedOutputProjection,
    nn.Embedding: PackedEmbedding,
    nn.MultiheadAttention: PackedMultiheadAttention,
    nn.LSTM: PackedLSTM,
    nn.GRU: PackedGRU,
    nn.RNN: PackedRNN,
    nn.Conv1d: PackedConv1d,
    nn.Conv2d: PackedConv2d,
    nn.Conv3d: PackedConv3d,
    nn.ConvTranspose1d: PackedConvTranspose1d,
    nn.ConvTranspose2d: PackedConvTranspose2d,
    nn.ConvTranspose3d: PackedConvTranspose3d,
}


def pack_parameter(module: nn.Module, name: str, packed: PackedWeight) -> None:
    """Put a packed weight in the place of the module's parameter ``name``; the class becomes its packed one."""
    if type(module) in PACKED_CLASSES:
        module.__class__ = PACKED_CLASSES[type(module)]
        module.__dict__.pop("_flat_weights", None)
    del module._parameters[name]
    module.add_module(f"packed_{name}", packed)


def packable_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that a packed class for the module keeps packed.

    Those of torch's own constructor: not what was registered on the layer besides, nor what its weight is made of where
    weight or spectral normalisation, pruning or a hook of the user's own makes it before each forward.
    """
    if type(module) in PACKED_CLASSES:
        own = _parameters_of(PACKED_CLASSES[type(module)], module)
    elif isinstance(module, PackedParameters):
        own = _parameters_of(type(module), module)
    else:
        return []
    return [name for name, value in module._parameters.items() if value is not None and name in own]


def _parameters_of(packed_class: type[PackedParameters], module: nn.Module) -> set[str]:
    if issubclass(packed_class, PackedRecurrent):
        return set(module._flat_weights_names)  # type: ignore[arg-type]
    if issubclass(packed_class, PackedMultiheadAttention):
        return {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v"}
    return {"weight"}
