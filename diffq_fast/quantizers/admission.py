"""Which models no quantizer can be on: sharded or packed ones, tensors that are not plain or are elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .selection import Slot

_SHARDED = ("FSDPModule", "FullyShardedDataParallel")
FSDP = (
    "its ranks would each draw and learn for themselves; sharding (FSDP, DTensor) is not supported yet. Use "
    "DistributedDataParallel: attach the quantizer, then wrap the model"
)


def refuse_foreign(who: str, model: nn.Module, slots: Iterable[Slot]) -> None:
    """Look at a model that a quantizer is about to be attached to.

    Args:
        who: the quantizer's name.
        model: the model.
        slots: the places of its parameters.

    Raises:
        TypeError: it is sharded or holds packed weights, or a parameter is a tensor subclass with operators of its own.
        ValueError: a parameter is offloaded.
    """
    kinds: dict[type, str] = {}
    for name, module in model.named_modules():
        kinds.setdefault(type(module), name or "the model")
    for kind, name in kinds.items():
        wrapper = sharding_wrapper(kind)
        if wrapper is not None:
            raise TypeError(f"{who}: {name} is sharded by {wrapper}, and {FSDP}")
        if getattr(kind, "stays_packed", False):
            raise TypeError(
                f"{who}: {name} is a weight that stays packed and cannot be trained; load the model without packed=True"
            )
    for slot in slots:
        refuse_tensor(who, slot.full_name, slot.param)
        if is_offloaded(slot.module, slot.param):
            raise ValueError(f"{who}: {offloaded(slot.full_name)}")


def refuse_tensor(who: str, name: str, tensor: Tensor) -> None:
    """TypeError for a tensor subclass that runs code of its own when an operator meets it."""
    if is_plain(type(tensor)):
        return
    kind = f"{type(tensor).__module__}.{type(tensor).__name__}"
    if type(tensor).__name__ == "DTensor":
        raise TypeError(f"{who}: {name} is a DTensor, and {FSDP}")
    raise TypeError(
        f"{who}: {name} is a {kind}, a tensor subclass whose numbers the quantizer's kernels cannot read; attach the "
        "quantizer to the model before another tool replaces its weights, or leave that tool out"
    )


def is_plain(kind: type) -> bool:
    """Whether tensors of this type are torch's own: Parameter, or a subclass that only carries attributes."""
    return issubclass(kind, FakeTensor) or _interception(kind) in map(_interception, (torch.Tensor, nn.Parameter))


def _interception(kind: Any) -> list[Any]:
    """The functions through which a class sees what operators do with its tensors."""
    return [getattr(method, "__func__", method) for method in (kind.__torch_function__, kind.__torch_dispatch__)]


def sharding_wrapper(kind: type) -> str | None:
    """The name of the class that shards the parameters of this module class, if one does."""
    return next((each.__name__ for each in kind.__mro__ if each.__name__ in _SHARDED), None)


def is_offloaded(module: nn.Module, param: Tensor) -> bool:
    """Whether the values of a module's parameter come only when the module runs: accelerate's hooks do that."""
    return param.is_meta and hasattr(module, "_hf_hook")


def offloaded(name: str) -> str:
    """What is told of such a parameter."""
    return (
        f"{name} is offloaded: it is on the meta device until its layer runs, and the quantizer reads it before; keep "
        "the model on its device (accelerate: remove_hook_from_submodules), or offload what quantizer.bake() leaves"
    )
