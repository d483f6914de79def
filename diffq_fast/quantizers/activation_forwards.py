"""What the inputs of a model's layers see in one training forward: keys and ranges, the same to its end.

Ranges that a forward moves are moved when it ends. So an activation checkpoint that computes a part of it again sees
what the forward saw, and so does each of several calls of one layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import functional
from .activation_shards import InputShards
from .input_quantizer import InputQuantizer, Shown, of_parallelism
from .noise import generator_state
from .replay import (
    Forward,
    Forwards,
    Nesting,
    ReplaysByThread,
    inside_backward,
    never_compiled_by_itself,
    next_sequence_number,
)
from .shadows import REPLICA, guard_of
from .shards import MANAGED, is_sharded

WHO = "ActivationQuantizer"


class Open(NamedTuple):
    """A forward that runs: its first autograd number, and the backward that it runs in."""

    forward: Forward
    start: int
    task: int


class ActivationForwards:
    """Hooks at the root of a model.

    Args:
        owner: the quantizer that this is a part of.
        model: the root.
        inputs: on its layers, or those of its parts, by the layer's name.
        momentum: of the ranges, 0 … 1.

    Raises:
        RuntimeError: the model is sharded in a way that is not supported.
    """

    rests = False  # what inner modules need of it is in their forwards

    def __init__(self, owner: Any, model: nn.Module, inputs: Mapping[str, InputQuantizer], momentum: float) -> None:
        self.owner, self.model, self.inputs, self.momentum = owner, model, list(inputs.values()), momentum
        self.nesting, self.forwards, self.replays = Nesting(), Forwards(), ReplaysByThread()
        self.shards = InputShards(model, inputs)
        self.shards.look()
        self.shards.place()
        self.noted: tuple[type, Any] | None = None  # of the model, when shards were noted last
        self._open: Open | None = None
        self._first: tuple[list[Tensor], list[Any]] | None = None  # what the first forward drew, and with whom
        for index, each in enumerate(self.inputs):
            each.place = self, index
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self.before_forward),
            model.register_forward_hook(self.after_forward, always_call=True),
        ]
        guard_of(model).add(self, True, ())

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        guard_of(self.model).remove(self, ())
        for each in self.inputs:
            each.place = None
        self._hide()

    # -- hooks ---------------------------------------------------------------------------------------------------------

    @never_compiled_by_itself
    def before_forward(self, module: nn.Module, args: tuple) -> None:
        """The root's pre-hook."""
        trains = any(each.training for each in self.inputs)
        if torch.compiler.is_compiling():
            if trains:
                self._show(self._drawn())
            return
        if module is not self.model:
            raise RuntimeError(REPLICA.format(WHO))
        first = self.nesting.enter(module)
        if first and self._open is not None:  # of a call that has died
            self._open = None
            self._hide()
        if trains and first:
            self._begin()
        elif trains and self.nesting.depth() == 1:
            raise RuntimeError(
                f"{WHO}: a training forward began on one thread while another thread was inside the model; train one "
                "copy of the model per thread (copy.deepcopy), or let the threads take turns with a lock"
            )

    def _begin(self) -> None:
        shown = self._drawn()
        devices = dict.fromkeys(each.range.device for each in self.inputs)
        fresh = Forward(lambda indices: shown, tuple([generator_state(device) for device in devices]))
        forward = self.forwards.alike(fresh) if inside_backward() else fresh
        start = next_sequence_number()
        if not torch.is_grad_enabled():
            forward.before = start - 1
        self._open = Open(forward, start, torch._C._current_graph_task_id())
        drawn = forward.make(())
        if self._first is None:
            groups = self.shards.groups(by_layers=True)
            self._first = drawn if groups else [], groups
        self._show(drawn)

    @never_compiled_by_itself
    def after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        """The root's hook, called after an exception too."""
        if torch.compiler.is_compiling():
            self._move_ranges()
            self._hide()
            return
        if module is not self.model or not self.nesting.leave():
            return
        if self._open is not None:
            self.forwards.ended(self._open.forward, self._open.start)
            self._move_ranges()
            self.shards.agree()
            self._open = None
            self._hide()

    def shown_again(self, index: int) -> Shown | None:
        """Inside a backward: what input ``index`` saw in the forward that is computed again."""
        if self._open is not None and self._open.task == torch._C._current_graph_task_id():
            return None
        forward = self.forwards.current()
        if forward is None:
            return None
        self.forwards.replay_begins(forward)
        return self._shown_to(index, forward.make(()))

    # -- what a guard tells --------------------------------------------------------------------------------------------

    def note_shards(self) -> None:
        """``fully_shard`` has changed the root. A call begins, and all parameters are still in shards."""
        self.shards.look()
        self.shards.refuse_plain()
        self.noted = type(self.model), self.model.__dict__.get(MANAGED)

    def unwind(self, calls: int, replays: int) -> None:
        """An exception has ended what this thread has begun since it was inside of so many calls of the model."""
        self.nesting.release()
        with self.nesting.lock:
            self.nesting.back_to(calls)
            if self.nesting.is_empty() and self._open is not None:
                self._open = None
                self._hide()

    # -- one forward ---------------------------------------------------------------------------------------------------

    def _drawn(self) -> list[Tensor]:
        """A key for each input, then the range of each, then, where learned bits are sharded, the logit of each: what
        they are now, whatever the forward moves.

        Where no noise is added no key is drawn, and the ranges stand for the keys.
        """
        noisy = any(each.noise is not None for each in self.inputs)
        ranges: list[Tensor] = [each.range for each in self.inputs]
        if any(map(is_sharded, ranges)):
            raise of_parallelism()
        keys = list(ranges)
        for indices in self._by_device():
            found = torch.stack([self.inputs[index].range for index in indices])
            drawn = found
            if noisy:
                offsets = torch.arange(len(indices), dtype=torch.int64, device=found.device)
                drawn = functional.draw_key(found) + offsets
            for index, key, range in zip(indices, drawn.unbind(), found.unbind(), strict=True):
                keys[index], ranges[index] = key, range
        return keys + ranges + self.shards.logits()

    def _by_device(self) -> list[list[int]]:
        places: dict[torch.device, list[int]] = {}
        for index, each in enumerate(self.inputs):
            places.setdefault(each.range.device, []).append(index)
        return list(places.values())

    def _show(self, drawn: list[Tensor]) -> None:
        for index, each in enumerate(self.inputs):
            each.shown = self._shown_to(index, drawn)

    def _shown_to(self, index: int, drawn: list[Tensor]) -> Shown:
        """What input ``index`` sees of what was drawn."""
        own = drawn[index :: len(self.inputs)]
        first, groups = self._first or (None, ())
        logit = own[2] if len(own) > 2 else None
        return Shown(own[0], own[1], logit, groups if drawn is first else ())

    def _hide(self) -> None:
        for each in self.inputs:
            each.shown = each.seen = None

    def _move_ranges(self) -> None:
        """Each range goes towards the largest magnitude of the forward, or, being the first one, there at once."""
        for indices in self._by_device():
            moved = [self.inputs[index] for index in indices if self.inputs[index].seen is not None]
            if not moved:
                continue
            with torch.no_grad():
                ranges = [each.range for each in moved]
                before, seen = torch.stack(ranges), torch.stack([each.seen for each in moved if each.seen is not None])
                after = torch.where(before > 0, before + (1 - self.momentum) * (seen - before), seen)
                torch._foreach_copy_(ranges, list(after.unbind()))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None, "_first": self._first and ([], [])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._handles:
            guard_of(self.model).add(self, True, ())
