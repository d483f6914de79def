"""Putting tensors in the place of parameters for the time of a forward.

A shadow is an entry in the owning module's ``__dict__``, which attribute access finds before the parameter. So
``parameters()``, ``state_dict()`` and the identity of every parameter stay as they are, also inside the forward.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import cast

from torch import Tensor, nn

from .selection import Slot

# Attribute of a module: whether its weights are shadowed. Only compiled graphs read it, see guard().
SHADOWED = "_diffq_fast_shadowed"


def put(pairs: Iterable[tuple[Slot, Tensor]]) -> None:
    """Shadow each slot's parameter with a tensor."""
    for slot, tensor in pairs:
        slot.module.__dict__[slot.name] = tensor
        slot.module.__dict__[SHADOWED] = True
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
    """Take the shadows away again; slots without one are left alone."""
    for slot in slots:
        slot.module.__dict__.pop(slot.name, None)
        slot.module.__dict__[SHADOWED] = False
        _set_flat_weight(slot, slot.param)


def _set_flat_weight(slot: Slot, tensor: Tensor) -> None:
    """RNN modules read a list of their own."""
    if slot.rnn_index is not None:
        cast(nn.RNNBase, slot.module)._flat_weights[slot.rnn_index] = tensor


class Nesting:
    """How deep each thread is inside the forward of one module.

    KeyboardInterrupt skips a module's forward hooks, so a depth can be left over from a call that has died. It is told
    from a call of the module inside itself by looking at the call stack.
    """

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}
        self.lock = threading.RLock()

    def enter(self, module: nn.Module) -> bool:
        """Count one call. True when no live call, in any thread, is inside the module already."""
        thread = threading.get_ident()
        with self.lock:
            if self._depths.get(thread) and _live_calls(module) < 2:
                del self._depths[thread]
            alone = not self._drop_dead_threads()
            self._depths[thread] = self._depths.get(thread, 0) + 1
            return alone

    def leave(self) -> bool:
        """Count one return. True when it was the last."""
        thread = threading.get_ident()
        with self.lock:
            depth = self._depths.pop(thread, 0)
            if depth > 1:
                self._depths[thread] = depth - 1
            return not self._depths

    def _drop_dead_threads(self) -> bool:
        """True when calls of live threads remain."""
        if self._depths:
            alive = {thread.ident for thread in threading.enumerate()}
            self._depths = {ident: depth for ident, depth in self._depths.items() if ident in alive}
        return bool(self._depths)

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self._depths = {}
        self.lock = threading.RLock()


def _live_calls(module: nn.Module) -> int:
    """Calls of ``module`` on this thread's stack, the one being entered included."""
    calls = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        calls += frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is module
        frame = frame.f_back
    return calls
