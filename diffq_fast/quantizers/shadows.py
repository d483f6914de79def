"""Putting tensors in the place of parameters for the time of a forward.

A shadow is an entry in the owning module's ``__dict__``, which attribute access finds before the parameter. So
``parameters()``, ``state_dict()`` and the identity of every parameter stay as they are, also inside the forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

from .selection import Slot

# Attribute of a module: whether its weights are shadowed. Only compiled graphs read it, see guard().
SHADOWED = "_diffq_fast_shadowed"


def put(pairs: Iterable[tuple[Slot, Tensor]]) -> None:
    """Shadow each slot's parameter with a tensor."""
    for slot, tensor in pairs:
        slot.module.__dict__[slot.name] = tensor
        slot.module.__dict__[SHADOWED] = True
        if slot.rnn_index is not None:
            _set_flat_weight(slot, tensor)


def guard(module: nn.Module) -> bool:
    """Read, while a graph is traced, whether the module's weights are shadowed.

    Dynamo checks again what was read, but not that a name is still missing from ``__dict__``: without this, the graph
    of a block that was called directly would be used in the model's own forward too, with the plain weights.
    """
    return bool(getattr(module, SHADOWED, False))  # the bool() makes Dynamo look


def forget(slots: Iterable[Slot]) -> None:
    """Take the shadows away for good."""
    slots = list(slots)
    take(slots)
    for slot in slots:
        slot.module.__dict__.pop(SHADOWED, None)


def take(slots: Iterable[Slot]) -> None:
    """Take the shadows away again; slots without one are left alone, also those whose parameter is gone: what stands
    in its place then is not ours."""
    for slot in slots:
        if slot.name in slot.module._parameters:
            slot.module.__dict__.pop(slot.name, None)
        slot.module.__dict__[SHADOWED] = False
        param = slot.module._parameters.get(slot.name)
        if slot.rnn_index is not None and param is not None:
            _set_flat_weight(slot, param)


def without(module: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """A module's ``__dict__`` as it is when nothing is shadowed; ``state`` is one of its own and is written to."""
    params = module._parameters
    for name in params.keys() & state.keys():
        del state[name]
    if SHADOWED in state:
        state[SHADOWED] = False
    if isinstance(module, nn.RNNBase) and "_flat_weights" in state:
        pairs = zip(module._flat_weights_names, state["_flat_weights"], strict=False)
        state["_flat_weights"] = [params.get(name) if name in params else each for name, each in pairs]
    return state


def _set_flat_weight(slot: Slot, tensor: Tensor) -> None:
    """RNN modules read a list of their own."""
    cast(nn.RNNBase, slot.module)._flat_weights[cast(int, slot.rnn_index)] = tensor
