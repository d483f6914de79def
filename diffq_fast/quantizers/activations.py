"""Rounded inputs of layers: pseudo quantisation noise or fake quantisation in training, at fixed or learned bits.

Beside a quantizer of weights, or without one. ``docs/activations.md`` tells what is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.hooks import RemovableHandle

from .activation_forwards import ActivationForwards
from .arguments import check_number, remembers_arguments
from .compiled import forget_graphs
from .gathering import gathered
from .input_quantizer import NAME, InputQuantizer, quantize_input
from .lower_precision import LAYERS
from .schedulers import refuse_schedulers_without
from .stored_input import LEAST_BITS, MOST_BITS, StoredInput


class ActivationQuantizer:
    """Trains a model for inputs of linear and convolution layers that are rounded to a few bits.

    ::

        activations = ActivationQuantizer(model, bits=8)      # beside a quantizer of weights, before or after it
        ...                                                   # train as before
        diffq_fast.save(quantizer, "model.safetensors")       # with the ranges and bits of the inputs
        diffq_fast.load("model.safetensors", plain, activations="stored")

    In training every forward of ``model`` adds uniform noise of one step to the inputs of the layers, or, with
    ``noise=None``, rounds them, with gradients that go straight through. In eval they are rounded. The levels are
    ``step * (-L … L)`` with ``L = 2**(bits - 1) - 1`` and ``step = range / L``; the range of an input is the running
    mean of the largest magnitude of each training forward. Ranges and learned bits are a buffer and a parameter of a
    small module, ``<layer>.input_quantizer``, so they are in the model's state_dict, move with it, and stay float32.

    Args:
        model: any module; none of its layers is replaced.
        bits: 2 … 15, a whole number; where bits are learned, those at the start.
        learn_bits: learn the bits of each input, between two limits from 2 to 15, ``(2, 15)`` for True; give the
            parameters to an optimizer (:meth:`setup_optimizer`), and add a penalty on :meth:`mean_bits` to the loss.
        noise: "uniform", or None: rounding in training too.
        include: fnmatch patterns of names of layers; all linear and convolution layers when left out.
        exclude: those among them to leave alone.
        momentum: of the running ranges, from 0 (the last forward's) to below 1.

    Attributes:
        inputs: what rounds the input of each layer, by the layer's name.

    Raises:
        ValueError: an argument is out of its range, or a pattern means no layer. TypeError: bits are no whole number.
        RuntimeError: an ActivationQuantizer is on one of the layers already.
    """

    arguments: dict[str, Any]

    @remembers_arguments
    def __init__(
        self,
        model: nn.Module,
        bits: int = 8,
        *,
        learn_bits: bool | tuple[float, float] = False,
        noise: str | None = "uniform",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        momentum: float = 0.99,
    ) -> None:
        limits = _limits(learn_bits, bits)
        _check_arguments(bits, noise, momentum)
        layers = _chosen(model, include, exclude)
        self._attach(model, layers, dict.fromkeys(layers, int(bits)), limits, (noise, momentum))

    def _attach(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        bits: Mapping[str, int],
        limits: tuple[float, float] | None,
        training: tuple[str | None, float],
    ) -> None:
        """``training``: the noise, and the momentum of the ranges."""
        _refuse_second(model, layers)
        noise, momentum = training
        self.model, self.inputs = model, dict[str, InputQuantizer]()
        self._layers, self._handles = dict(layers), list[RemovableHandle]()
        for name, layer in layers.items():
            made = InputQuantizer(bits[name], limits, noise, _device_of(layer, model))
            made.train(layer.training)
            self.inputs[name] = made
        self._forwards = ActivationForwards(self, model, self.inputs, momentum)
        for name, layer in layers.items():
            layer.add_module(NAME, self.inputs[name])
            self._handles.append(layer.register_forward_pre_hook(quantize_input, with_kwargs=True))
        forget_graphs(model)

    @classmethod
    def stored(cls, model: nn.Module, inputs: Mapping[str, StoredInput]) -> ActivationQuantizer:
        """Round the inputs as a packed file has them (``read_packed(path).activations``), at fixed bits.

        Raises:
            ValueError: the model has no module of one of the names.
            RuntimeError: an ActivationQuantizer is on one of the layers already.
        """
        modules = dict(model.named_modules())
        missing = sorted(inputs.keys() - modules.keys())
        if missing:
            raise ValueError(f"ActivationQuantizer: the model has no layer {', '.join(map(repr, missing[:3]))}")
        self = cls.__new__(cls)
        self.arguments = {}
        layers = {name: modules[name] for name in inputs}
        self._attach(model, layers, {name: each.bits for name, each in inputs.items()}, None, ("uniform", 0.99))
        for name, each in inputs.items():
            self.inputs[name].take(each)
        return self

    @staticmethod
    def on(model: nn.Module) -> ActivationQuantizer | None:
        """The one that is attached to ``model``, as its root; None: there is none."""
        owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
        return next((owner.owner for owner in owners if isinstance(owner, ActivationForwards)), None)

    def detach(self) -> None:
        """Take everything off the model: its layers see their inputs as they are. Ranges and bits can still be read."""
        self._forwards.detach()
        for handle in self._handles:
            handle.remove()
        for name, layer in self._layers.items():
            if layer._modules.get(NAME) is self.inputs[name]:
                del layer._modules[NAME]
        self._handles = []
        forget_graphs(self.model)

    # -- bits ----------------------------------------------------------------------------------------------------------

    def bits(self, exact: bool = False) -> Tensor:
        """The bits of each input, float32 ``[inputs]`` on the first one's device, in the order of :attr:`inputs`.

        Differentiable where they are learned. Asks the device for nothing. Where the model is sharded, every process
        calls this.

        Args:
            exact: whole bits, those of eval and of the packed file.
        """
        inputs = list(self.inputs.values())
        device = inputs[0].range.device
        learned = [] if exact else gathered(self.learned_parameters(), averaged=False)
        found = []
        for each, logit in zip_longest(inputs, learned):
            bits = each.bits(exact, logit)
            if not isinstance(bits, Tensor):
                bits = torch.full((1,), bits, dtype=torch.float32, device=device)
            found.append(bits.to(device))
        return torch.cat(found)

    def mean_bits(self) -> Tensor:
        """The mean of :meth:`bits` over the inputs, 0-dim: a penalty for learned bits."""
        return self.bits().mean()

    # -- what is learned -----------------------------------------------------------------------------------------------

    def learned_parameters(self) -> list[nn.Parameter]:
        """The logits of learned bits, in the order of :attr:`inputs`."""
        return self._forwards.shards.learned()

    def setup_optimizer(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        """Add the logits to ``optimizer`` as one group with these options; without any nothing is added.

        Raises:
            RuntimeError: the optimizer holds them already, or a learning rate scheduler of it counts its groups.
        """
        who, learned = "ActivationQuantizer.setup_optimizer", self.learned_parameters()
        held = {id(param) for group in optimizer.param_groups for param in group["params"]}
        if any(id(param) in held for param in learned):
            raise RuntimeError(
                f"{who}: the optimizer already holds the learned bits; make the optimizer before the quantizer"
            )
        if learned:
            group = {"params": learned, "weight_decay": 0.0, **options}
            refuse_schedulers_without(who, optimizer, group)
            optimizer.add_param_group(group)
            self._forwards.shards.given = learned

    def parameter_groups(self, *, lr: float | None = None) -> list[dict[str, Any]]:
        """The logits as a group for an optimizer that other code makes, beside those of the quantizer of weights.

        Without weight decay. No group where no bits are learned.

        Args:
            lr: learning rate; None: the optimizer's.
        """
        learned = self.learned_parameters()
        options = {"weight_decay": 0.0} if lr is None else {"weight_decay": 0.0, "lr": lr}
        self._forwards.shards.given = learned
        return [{"params": learned, **options}] if learned else []

    def __repr__(self) -> str:
        return f"ActivationQuantizer({len(self.inputs)} inputs, {self.arguments})"


# -- arguments ---------------------------------------------------------------------------------------------------------


def _check_arguments(bits: Any, noise: Any, momentum: Any) -> None:
    who = "ActivationQuantizer"
    number = check_number(who, "bits", bits)
    if not LEAST_BITS <= number <= MOST_BITS or number != int(number):
        raise ValueError(
            f"{who}: bits must be a whole number from {LEAST_BITS} (one bit has no level beside zero) to "
            f"{MOST_BITS}, got {bits}"
        )
    if noise not in ("uniform", None):
        raise ValueError(f"{who}: noise must be 'uniform' or None (rounding in training too), got {noise!r}")
    if not 0 <= check_number(who, "momentum", momentum) < 1:
        raise ValueError(f"{who}: momentum must be from 0 to below 1, got {momentum}")


def _limits(learn_bits: Any, bits: Any) -> tuple[float, float] | None:
    """Of learned bits, None: they are fixed."""
    who = "ActivationQuantizer"
    if learn_bits is False:
        return None
    given = (LEAST_BITS, MOST_BITS) if learn_bits is True else learn_bits
    if not isinstance(given, tuple) or len(given) != 2:
        raise TypeError(
            f"{who}: learn_bits must be True, False or a pair of limits such as (2, 15), got {learn_bits!r}"
        )
    low, high = (check_number(who, "learn_bits", each) for each in given)
    if not LEAST_BITS <= low < high <= MOST_BITS:
        raise ValueError(
            f"{who}: learn_bits: expected limits {LEAST_BITS} <= low < high <= {MOST_BITS}, got {low:g} and {high:g}"
        )
    if not low < check_number(who, "bits", bits) < high:
        raise ValueError(
            f"{who}: learned bits start between their limits, which are {low:g} and {high:g}; got bits={bits}"
        )
    return low, high


def _chosen(model: nn.Module, include: Sequence[str] | None, exclude: Sequence[str]) -> dict[str, nn.Module]:
    """The layers by name. Attention's output projection is left out: it is never called, only its weight is read."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    wanted = set(layers) if include is None else _matching(layers, include, "include")
    wanted -= _matching(layers, exclude, "exclude")
    if not wanted:
        raise ValueError("ActivationQuantizer: the model has no linear or convolution layer that is not excluded")
    return {name: module for name, module in layers.items() if name in wanted}


def _matching(names: Iterable[str], patterns: Sequence[str], argument: str) -> set[str]:
    chosen = set[str]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(
                f"ActivationQuantizer: {argument}={pattern!r} means no linear or convolution layer; names are those of "
                "model.named_modules()"
            )
        chosen |= found
    return chosen


def _refuse_second(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    if ActivationQuantizer.on(model) is not None:
        raise RuntimeError("ActivationQuantizer: one is on this model already; detach() it first")
    for name, layer in layers.items():
        if hasattr(layer, NAME):
            raise RuntimeError(
                f"ActivationQuantizer: {name or 'the model'} has an {NAME} already; detach() the quantizer that is on "
                "it first, or exclude the layer"
            )


def _device_of(layer: nn.Module, model: nn.Module) -> torch.device:
    """That of the layer's first tensor; of the model's where it has none."""
    first = next(chain(layer.parameters(), layer.buffers(), model.parameters()), None)
    return torch.device("cpu") if first is None else first.device
