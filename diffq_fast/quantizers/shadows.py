"""Putting tensors in the place of parameters for the time of a forward.

A shadow is an entry in the owning module's ``__dict__``, which attribute access finds before the parameter. So
``parameters()``, ``state_dict()`` and the identity of every parameter stay as they are, also inside the forward.

torch calls forward hooks after an ``Exception``, and after none that is not one: KeyboardInterrupt, SystemExit,
``asyncio.CancelledError``. A guard stands before ``_call_impl`` and sees all of them. It also stands before what copies
and pickles read, so that they hold no shadow, and before what moves and casts parameters, so that what is learned
stays float32. Copies hold no guards: the copied attachment sets its own.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .replay import Nesting, ReplaysByThread, passed_by_when_compiling
from .selection import Slot
from .shards import MANAGED


def _unknown() -> Any:
    return True


# What compiles the frames that are called now; None: nothing does.
_frame_compiler: Callable[[], Any] = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", _unknown)

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


# -- guards ------------------------------------------------------------------------------------------------------------


class Unwinding(Protocol):
    """What puts tensors in the place of a module's weights: an attachment."""

    nesting: Nesting
    replays: ReplaysByThread

    model: nn.Module
    noted: tuple[type, Any] | None

    rests: bool  # its hooks of inner modules have nothing to do in forwards, only inside backwards

    def note_shards(self) -> None:
        """A call of the root begins, before any hook, and ``fully_shard`` may have changed it since the last one."""

    def unwind(self, calls: int, replays: int) -> None:
        """Take away what this thread has put since it was inside of so many; an exception ends the call."""


class Guard:
    """Stands before the methods of one module that :data:`NAMES` lists.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._found = {name: module.__dict__[name] for name in NAMES if name in module.__dict__}
        self._roots: list[Unwinding] = []
        self._parts: list[Unwinding] = []
        self._learned: list[str] = []
        for name, method in NAMES.items():
            module.__dict__[name] = method.__get__(self)

    def add(self, attachment: Unwinding, is_root: bool, learned: Iterable[str]) -> None:
        """Guard the calls that concern ``attachment``, and parameters ``learned``."""
        (self._roots if is_root else self._parts).append(attachment)
        self._learned += learned

    def remove(self, attachment: Unwinding, learned: Iterable[str]) -> None:
        """Take :meth:`add` back. A guard that has nothing to guard goes."""
        for held in (self._roots, self._parts):
            held[:] = [each for each in held if each is not attachment]
        self._learned = [name for name in self._learned if name not in set(learned)]
        if not self._roots and not self._parts:
            own = self._module.__dict__
            # An exception may come between: the one by which guard_of finds this goes last.
            for name in reversed(NAMES):
                if getattr(own.get(name), "__self__", None) is not self:
                    continue
                if name in self._found:
                    own[name] = self._found[name]
                else:
                    del own[name]

    def _before(self, name: str) -> Callable:
        """The method that the guard stands before: what stood in ``__dict__`` already, or the class's."""
        return self._found.get(name) or getattr(type(self._module), name).__get__(self._module)

    @passed_by_when_compiling
    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Stands before ``_call_impl``."""
        if torch.compiler.is_compiling():
            return type(self._module)._call_impl(self._module, *args, **kwargs)
        if self._roots:
            self._refuse_replica(sys._getframe(1).f_locals.get("self"))
            guarded = [*self._roots, *self._parts]
            for root in self._roots:
                if root.noted != (type(root.model), root.model.__dict__.get(MANAGED)):
                    root.note_shards()
        elif torch._C._current_graph_task_id() == -1:  # only inside a backward is anything put here
            called = self._module.forward if self._may_pass_by() else self._before("_call_impl")
            return called(*args, **kwargs)
        else:
            guarded = self._parts
        call = self._before("_call_impl")
        here = threading.get_ident()
        marks = [(each, each.nesting.depths.get(here, 0), len(each.replays.stacks.get(here, ()))) for each in guarded]
        try:
            return call(*args, **kwargs)
        except BaseException:
            for attachment, calls, replays in marks:
                attachment.unwind(calls, replays)
            raise

    def _may_pass_by(self) -> bool:
        """Whether a call comes to the module's ``forward`` alone, since no hook has anything to do: as ``_call_impl``
        finds for a module without hooks, which is several times as fast. Dynamo has to see the hooks."""
        module, parts = self._module, self._parts
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            if len(hooks) != len(parts):
                return False
            for hook in hooks.values():
                if getattr(hook, "__self__", None) not in parts:
                    return False
        if not all(part.rests for part in parts):
            return False
        others = module._backward_hooks or module._backward_pre_hooks or _has_any_global_hook()
        own = "_call_impl" in self._found or type(module)._call_impl is not nn.Module._call_impl
        return not (others or own or torch._C._get_tracing_state() or _frame_compiler() is not None)

    def _refuse_replica(self, caller: Any) -> None:
        """A replica has the ``__dict__`` of its original, and so calls the guard of that."""
        if (
            caller is not self._module
            and isinstance(caller, nn.Module)
            and caller.__dict__.get("_call_impl") == self.call
        ):
            raise RuntimeError(REPLICA.format(type(caller).__name__))

    def state(self) -> Any:
        """Stands before ``__getstate__``: without shadows, without guards."""
        method = getattr(type(self._module), "__getstate__", None)  # modules have one from torch 2.13, Python 3.11 on
        state = self._module.__dict__ if method is None else method(self._module)
        if not isinstance(state, dict):
            return state
        return without(self._module, {name: state[name] for name in state if name not in NAMES} | self._found)

    def apply(self, function: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        """Stands before ``_apply``, through which a module is moved and cast: what is learned keeps its dtype."""
        params = [self._module._parameters.get(name) for name in self._learned]
        learned = {id(each) for param in params if param is not None for each in (param, param.grad)}

        def keeping(tensor: Tensor) -> Tensor:
            moved = function(tensor)
            kept = id(tensor) in learned and moved.dtype != tensor.dtype
            return tensor.detach().to(moved.device) if kept else moved

        return self._before("_apply")(keeping, *args, **kwargs)


NAMES = {"_call_impl": Guard.call, "__getstate__": Guard.state, "_apply": Guard.apply}
REPLICA = (
    "{}: called through a shallow copy or a replica of the model that a quantizer was attached to; use copy.deepcopy, "
    "or one process per device"
)


def guard_of(module: nn.Module) -> Guard:
    """The module's guard; a new one where there is none."""
    found = getattr(module.__dict__.get("_call_impl"), "__self__", None)
    return found if isinstance(found, Guard) else Guard(module)
