"""Hooks that put tensors in the place of a model's weights for the time of a forward.

The root's forward hooks put tensors in the place of the weights (see ``shadows``) and take them away, also when the
forward raises. Hooks of inner modules act inside a backward, where an activation checkpoint runs a part of the model
again: they give it the tensors of its own forward (see ``replay``). Else they only look at weights that were made in a
lower dtype (see ``lower_precision``). What hooks do not see, guards do (see ``shadows``). ``docs/training.md`` says
why.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils.hooks import RemovableHandle

from . import shadows
from .compiled import forget_graphs
from .lower_precision import Lowered, LowerPrecision
from .replay import (
    Forward,
    Forwards,
    Maker,
    Nesting,
    ReplaysByThread,
    make_unseen,
    never_compiled_by_itself,
    next_sequence_number,
)
from .selection import QuantizedParameter, Selection, Slot
from .shadows import REPLICA, guard_of
from .sharded import ShardedForwards
from .shards import MANAGED

# The backward that this thread is running, as ``replay.inside_backward`` asks for it: each module's call passes here.
_backward_here = torch._C._current_graph_task_id
NO_BACKWARD = -1
SCRIPT_ASKS = "__prepare_scriptable__"  # the method of a module that torch.jit.script calls


class Draw(NamedTuple):
    """What one forward sees: how its weights are made, where the random generators stood before, and what it sees
    besides in the place of parameters."""

    maker: Maker
    generators: Hashable = None
    rest: Sequence[tuple[Slot, Tensor]] = ()


class Source(Protocol):
    """Where the tensors come from that a forward sees: the quantizer."""

    def check_model(self) -> None:
        """An error where the weights cannot be read, or are not those that they were."""

    def begin_training(self) -> Draw | None:
        """A training forward begins. None: it sees the weights as they are."""

    def begin_eval(self) -> Draw:
        """An eval forward begins."""

    def traced_training(self) -> Maker | None:
        """The same as :meth:`begin_training` inside a compiled graph, where nothing is remembered."""

    def traced_eval(self) -> list[tuple[Slot, Tensor]]:
        """All that an eval forward sees in the place of parameters, inside a compiled graph."""


class Live(NamedTuple):
    """What those see that are inside the model now: whether it trains, whether tensors stand in the place of weights,
    whether these have gradients."""

    training: bool
    shows: bool
    gradients: bool


class Attachment:
    """Keeps a model's weights switched, from :meth:`attach` to :meth:`detach`.

    Args:
        source: says what stands in the place of the weights.
        model: its root's forwards are those that see something else.
        selection: the weights, in the order in which makers count them.
        lowering: which weights may be made in autocast's dtype.
    """

    def __init__(
        self, source: Source, model: nn.Module, selection: Selection, lowering: LowerPrecision | None = None
    ) -> None:
        self.source, self.model, self._selection, self._lowering = source, model, selection, lowering
        self._entries: Sequence[QuantizedParameter] = selection.quantised
        self._everything: Sequence[int] = range(len(selection.quantised))
        self._traced = [*selection.quantised, *selection.rest, *(slot for slot, _ in selection.ties())]
        self.nesting, self.forwards, self.replays = Nesting(), Forwards(), ReplaysByThread()
        self._shown: dict[Slot, Lowered | None] = {}
        self._live: Live | None = None
        self._open: tuple[Forward, int] | None = None
        self._sharded = ShardedForwards(type(source).__name__, selection)
        self.noted: tuple[type, Any] | None = None  # of the model, when shards were noted last
        self._members: dict[nn.Module, list[int]] = {}
        self._handles: list[RemovableHandle] = []
        self.rests = lowering is None and selection.mesh is None

    def attach(self) -> None:
        """Register the hooks, and set the guards."""
        places: dict[nn.Module, list[int]] = {}
        for index, entry in enumerate(self._entries):
            places.setdefault(entry.module, []).append(index)
        members: dict[nn.Module, list[int]] = {}
        _members_of(self.model, places, members)
        self._members = {each: indices for each, indices in members.items() if indices and each is not self.model}
        self._handles = [
            self.model.register_forward_pre_hook(self.before_forward),
            self.model.register_forward_hook(self.after_forward, always_call=True),
        ]
        for module in self._members:
            self._handles.append(module.register_forward_pre_hook(self.before_inner))
            self._handles.append(module.register_forward_hook(self.after_inner, always_call=True))
        self.model.__dict__[SCRIPT_ASKS] = self.refuse_script
        self._set_guards()
        forget_graphs(self.model)

    def detach(self) -> None:
        """Remove the hooks, the guards, and all that stands in the place of a weight."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if getattr(self.model.__dict__.get(SCRIPT_ASKS), "__self__", None) is self:
            del self.model.__dict__[SCRIPT_ASKS]
        self._take()
        shadows.forget(self._entries)
        for module, learned in self._guarded().items():
            guard_of(module).remove(self, learned)

    def _set_guards(self) -> None:
        for module, learned in self._guarded().items():
            guard_of(module).add(self, module is self.model, learned)

    def _guarded(self) -> dict[nn.Module, list[str]]:
        """The modules that may hold a shadow or call one that does, with the names of what is learned in them."""
        owners = [slot.module for slot in self._traced]
        guarded: dict[nn.Module, list[str]] = {each: [] for each in (self.model, *self._members, *owners)}
        for entry in self._entries:
            if entry.tied_to is None and entry.learned_name is not None:
                guarded[entry.module].append(entry.learned_name)
            if entry.tied_to is None and entry.ends_name is not None:
                guarded[entry.module].append(entry.ends_name)
        return guarded

    # -- the forward of the whole model ------------------------------------------------------------------------------

    @never_compiled_by_itself
    def before_forward(self, module: nn.Module, args: tuple) -> None:
        """The root's pre-hook."""
        if torch.compiler.is_compiling():
            self._trace_forward(module)
            return
        if torch.jit.is_tracing():
            raise self._not_as_it_is("traced, or exported to ONNX through a trace")
        if module is not self.model:
            raise RuntimeError(REPLICA.format(type(self.source).__name__))
        with self.nesting.lock:
            if not self.nesting.enter(module):
                self._join(module.training)
                return
            if self.replays.elsewhere():
                raise self._busy("a forward began", "computes a checkpoint of the model again")
            if self._shown:
                self._take()
            self.replays.forget()
            self._live = self._open = None
            outside: Any = nullcontext()
            if torch._C._functorch.peek_interpreter_stack() is not None:
                self.source.check_model()  # which refuses weights that are transformed; others are plain tensors
                outside = temporarily_clear_interpreter_stack()
            with outside:
                draw = self.source.begin_training() if module.training else self.source.begin_eval()
                self._live = Live(module.training, draw is not None, torch.is_grad_enabled())
                if draw is not None:
                    maker: Maker = draw.maker
                    entries, indices = self._entries, self._everything
                    if self._selection.mesh is not None:
                        self.rests = False
                        maker, indices = self._sharded.begin(maker, indices)
                        entries = [self._entries[index] for index in indices]
                    forward, start, tensors = self.forwards.begin(maker, draw.generators, indices)
                    pairs = [*zip(entries, tensors, strict=True), *draw.rest]
                    self._shown.update(dict.fromkeys(dict(pairs)))
                    shadows.put(pairs)
                    if self._lowering is not None:
                        self._shown |= self._lowering.lowered(forward.make, self._everything, self._entries)
                    self._open = (forward, start)

    def _join(self, training: bool) -> None:
        """A call begins while one is inside the model: it sees what that one sees.

        Raises:
            RuntimeError: that one is on another thread, and this one must see something else.
        """
        live = self._live
        if self.nesting.depth() > 1:
            return
        if live is not None and live.training == training:
            if not training and (live.gradients or not torch.is_grad_enabled()):
                return
            if training and not live.shows and self.source.begin_training() is None:
                return
        raise self._busy(f"a forward in {'training' if training else 'eval'} mode began", "was inside the model")

    def _busy(self, what: str, elsewhere: str) -> RuntimeError:
        return RuntimeError(
            f"{type(self.source).__name__}: {what} on one thread while another thread {elsewhere}, and both would read "
            "the same weights; train one copy of the model per thread (copy.deepcopy), or let the threads take turns "
            "with a lock around forward and backward. Only eval forwards may run at the same time, all of them under "
            "torch.no_grad() or none"
        )

    @never_compiled_by_itself
    def after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        """The root's hook, called after an exception too."""
        if torch.compiler.is_compiling():
            shadows.take(self._traced)
            return
        with self.nesting.lock:
            if module is not self.model or not self.nesting.leave():
                return
            if self._open is not None:
                self.forwards.ended(*self._open)
                self._open = None
                if self._selection.mesh is not None:
                    self._sharded.end()
            if self._shown:
                shadows.take(self._shown)
                self._shown.clear()

    def _take(self, slots: Iterable[Slot] | None = None) -> None:
        """Take away the shadows of ``slots``, or all that this quantizer has put."""
        slots = list(self._shown if slots is None else slots)
        if slots:
            shadows.take(slots)
        for slot in slots:
            self._shown.pop(slot, None)

    def refuse_script(self) -> nn.Module:
        """What torch.jit.script calls first, on the root and on every module that it finds it in."""
        raise self._not_as_it_is("compiled by TorchScript")

    def _not_as_it_is(self, treated: str) -> RuntimeError:
        return RuntimeError(
            f"{type(self.source).__name__}: a model cannot be {treated} while a quantizer switches its weights; make "
            "the quantised weights permanent first: copy.deepcopy(quantizer), then bake() on the copy, whose .model "
            "is a plain one"
        )

    def _trace_forward(self, module: nn.Module) -> None:
        """The same inside a compiled graph: nothing is remembered in Python."""
        if torch.onnx.is_in_onnx_export():
            raise self._not_as_it_is("exported to ONNX")
        if module.training:
            maker = self.source.traced_training()
            if maker is not None:
                shadows.put(zip(self._entries, maker(self._everything), strict=True))
        else:
            pairs = self.source.traced_eval()
            shadows.put((slot, tensor + (slot.param - slot.param.detach())) for slot, tensor in pairs)

    # -- inner modules -----------------------------------------------------------------------------------------------

    @never_compiled_by_itself
    def before_inner(self, module: nn.Module, args: tuple) -> None:
        """The pre-hook of a module that holds quantised weights, or whose parts do."""
        if torch.compiler.is_compiling():
            shadows.guard(module)
            return
        if _backward_here() != NO_BACKWARD:
            self._replay(module)
        elif self._selection.mesh is not None and self._open is not None:
            self._gathered(module, self._open[0])
        if self._lowering is not None:
            self._lowering.before_reading(module, self._shown)

    def _gathered(self, module: nn.Module, forward: Forward) -> None:
        """Make those weights of ``module`` that are whole since it is called; when it ends they are taken away."""
        indices = self._sharded.enter(module, self._members[module])
        tensors = make_unseen(forward.make, indices) if indices else []
        entries = [self._entries[index] for index in indices]
        self._shown.update(dict.fromkeys(entries))
        shadows.put(zip(entries, tensors, strict=True))
        self._sharded.refuse_unmade(module)

    def _replay(self, module: nn.Module) -> None:
        """Give the weights of ``module`` that nothing stands for the tensors of the forward that is computed again."""
        missing = [index for index in self._members[module] if not self._entries[index].is_shadowed]
        shared = len(missing) < len(self._members[module])
        if self._selection.mesh is not None:
            missing = self._sharded.ready(missing)
        forward = self.forwards.current() if missing or shared else None
        # A forward that has ended is not the one that another thread is inside of.
        if shared and (self.replays.elsewhere() or (forward is not None and self.nesting.others())):
            raise self._busy("a checkpoint was computed again", "was inside the model")
        if forward is None or not missing:
            self.replays.begin(None)
            return
        # Without gradients this is the first run of a reentrant checkpoint within the recomputation: its node is the
        # one made last, and it will be the current one when this part is computed once more.
        start = next_sequence_number() - (not torch.is_grad_enabled())
        entries = [self._entries[index] for index in missing]
        self.replays.begin((forward, start, missing))
        tensors = make_unseen(forward.make, missing)
        self._shown.update(dict.fromkeys(entries))
        shadows.put(zip(entries, tensors, strict=True))
        if self._lowering is not None:
            self._shown |= self._lowering.lowered(forward.make, missing, entries)

    @never_compiled_by_itself
    def after_inner(self, module: nn.Module, args: tuple, output: Any) -> None:
        """The hook of such a module, called after an exception too."""
        if torch.compiler.is_compiling():
            return
        if _backward_here() == NO_BACKWARD:
            if self._selection.mesh is not None:
                self._take(self._entries[index] for index in self._sharded.leave(module))
            return
        if not self.replays.depth():
            return
        replayed = self.replays.last()
        if replayed is not None:
            forward, start, indices = replayed
            self._take(self._entries[index] for index in indices)
            self.forwards.remember_replay(forward, start)
        self.replays.end()

    # -- exceptions and copies -----------------------------------------------------------------------------------------

    @never_compiled_by_itself
    def note_shards(self) -> None:
        """``fully_shard`` has changed the root. A call begins, and all weights are still in shards.

        RuntimeError where they are not: the quantizer is on a part of what was sharded as one.
        """
        self._sharded.look()
        self.noted = type(self.model), self.model.__dict__.get(MANAGED)

    def unwind(self, calls: int, replays: int) -> None:
        """An exception has ended what this thread has begun since it was inside of so many calls of the model, and
        recomputations of its parts."""
        self.nesting.release()
        with self.nesting.lock:
            while self.replays.depth() > replays:
                replayed = self.replays.last()
                if replayed is not None:
                    self._take(self._entries[index] for index in replayed[2])
                self.replays.end()
            self.nesting.back_to(calls)
            if self.nesting.is_empty() and not replays and not self.replays.elsewhere():
                self._take()
                self._open = None
                self._sharded.end()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_shown": {}, "_open": None, "_live": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._handles:
            self._set_guards()


def attached_to(model: nn.Module, with_parts: bool = False) -> list[Any]:
    """The quantizers on ``model``, in the order in which they were attached; with those on parts of it, if asked."""
    modules = model.modules() if with_parts else (model,)
    owners = (getattr(hook, "__self__", None) for module in modules for hook in module._forward_pre_hooks.values())
    return list(dict.fromkeys(owner.source for owner in owners if isinstance(owner, Attachment)))


def _members_of(module: nn.Module, places: dict[nn.Module, list[int]], known: dict[nn.Module, list[int]]) -> list[int]:
    """The indices of the weights that ``module`` holds, at any depth. ``known`` takes those of all its parts."""
    if module not in known:
        known[module] = []  # where a module holds itself, the walk ends here
        indices = set(places.get(module, ()))
        for child in module.children():
            indices.update(_members_of(child, places, known))
        known[module] = sorted(indices)
    return known[module]
