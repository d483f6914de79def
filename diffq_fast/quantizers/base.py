"""What every quantizer does: attach to a model, switch its weights in forwards, quantise and put back.

The root's forward hooks put tensors in the place of the weights (see ``shadows``) and take them away, also when the
forward raises. Hooks of inner modules act inside a backward, where an activation checkpoint runs a part of the model
again: they give it the tensors of its own forward (see ``replay``). Else they only look at weights that were made in a
lower dtype (see ``lower_precision``). ``docs/training.md`` says why.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import shadows
from .export import Export
from .lower_precision import Lowered
from .replay import (
    Forward,
    Forwards,
    Maker,
    inside_backward,
    never_compiled_by_itself,
    next_sequence_number,
    unseen_by_checkpoints,
)
from .selection import QuantizedParameter, Slot, in_half_precision, select, untied
from .steps import optimizer_steps
from .straight_through import straight_through


def remembers_arguments(init: Callable) -> Callable:
    """Keep the arguments that the caller of ``__init__`` gave, by name, as ``self._init_kwargs``, without the model."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}; its arguments are {signature}") from None
        self._init_kwargs = {name: value for name, value in given.items() if name not in ("self", "model")}
        init(self, *args, **kwargs)

    return wrapped


def drop_compiled_graphs() -> None:
    """Have everything compiled anew: graphs that were traced before check neither for new hooks nor what hooks read."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


class BaseQuantizer(Export):
    """Hooks, switching and bookkeeping shared by the quantizers. Not used by itself.

    A subclass says what a weight looks like in training (:meth:`_training_maker`) and in eval
    (:meth:`_quantized_weights`).
    """

    def __init__(
        self, model: nn.Module, min_size: float, float16: bool, exclude: Sequence[str], detect_bound: bool
    ) -> None:
        self.model = model
        self.min_size = min_size
        self.float16 = float16
        self.exclude = exclude
        self.detect_bound = detect_bound
        selection = select(model, min_size, exclude, detect_bound, type(self).__name__)
        self._qparams: list[QuantizedParameter] = selection.quantized
        self._rest: list[Slot] = selection.rest
        self._rest_ties = selection.rest_ties
        self._saved: dict[Slot, tuple[Tensor, Tensor]] | None = None
        self._shown: dict[Slot, Lowered | None] = {}
        self._nesting = shadows.Nesting()
        self._forwards = Forwards()
        self._open: tuple[Forward, int] | None = None
        self._replayed: list[tuple[Forward, int, list[int]] | None] = []
        self._aliases_of_quantized = selection.aliases
        self._eval_cache: dict[Slot, tuple[tuple, Tensor, Tensor]] = {}

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def _training_maker(self) -> Maker | None:
        """Draw what is random in one training forward; return how to make the weights of given indices from it.

        None: a training forward sees the weights as they are.
        """
        raise TypeError(f"{type(self).__name__} cannot be used by itself")

    def _quantized_weights(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        """The weights as they come back from an export, in the parameters' dtypes."""
        raise TypeError(f"{type(self).__name__} cannot be used by itself")

    def _before_training_forward(self) -> None:
        """Checks of a subclass before a training forward."""

    def _before_reading(self, module: nn.Module) -> None:
        """``module``, which holds quantised weights or whose parts do, is about to be called."""

    def _generators(self) -> Hashable:
        """The state of the random generators that :meth:`_training_maker` is about to draw from. None: of none."""
        return None

    # -- attach and detach -------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Register the hooks; the last step of a subclass's constructor."""
        self._members: dict[nn.Module, list[int]] = {}
        for module in self.model.modules():
            subtree = set(module.modules())
            members = [index for index, entry in enumerate(self._qparams) if entry.module in subtree]
            if members and module is not self.model:
                self._members[module] = members
        self._handles: list[RemovableHandle] = [
            self.model.register_forward_pre_hook(self._before_forward),
            self.model.register_forward_hook(self._after_forward, always_call=True),
        ]
        for module in self._members:
            self._handles.append(module.register_forward_pre_hook(self._before_inner))
            self._handles.append(module.register_forward_hook(self._after_inner, always_call=True))
        drop_compiled_graphs()

    def detach(self) -> None:
        """Remove the hooks and the learned parameters from the model; the weights stay as they are.

        Sizes and exports still work afterwards, from what was learned.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._take()
        shadows.forget(self._qparams)
        for entry in self._qparams:
            if entry.other is None and entry.learned_name is not None:
                entry.detached = entry.module._parameters.pop(entry.learned_name, entry.detached)

    # -- the forward of the whole model ------------------------------------------------------------------------------

    @never_compiled_by_itself
    def _before_forward(self, module: nn.Module, args: tuple) -> None:
        if torch.compiler.is_compiling():
            self._trace_forward(module)
            return
        if module is not self.model:
            raise RuntimeError(
                f"{type(self).__name__}: called through a shallow copy or a replica of the model that it was attached "
                "to; use copy.deepcopy, or one process per device"
            )
        with self._nesting.lock:
            if not self._nesting.enter(module):
                return
            self._take()
            self._replayed.clear()
            self._open = None
            if module.training:
                self._enter_training()
            else:
                self._enter_eval()

    @never_compiled_by_itself
    def _after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        if torch.compiler.is_compiling():
            ties = [slot for slot, _ in [*self._rest_ties, *self._aliases_of_quantized]]
            shadows.take([*self._qparams, *self._rest, *ties])
            return
        with self._nesting.lock:
            if not self._nesting.leave():
                return
            self._take()
            if self._open is not None:
                forward, start = self._open
                if inside_backward():
                    self._forwards.remember_replay(forward, start)
                else:
                    forward.start, forward.stop = start, next_sequence_number()
                    self._forwards.remember(forward)
                self._open = None

    def _enter_training(self) -> None:
        self._before_training_forward()
        self.unquantize()
        self._eval_cache.clear()
        generators = self._generators()
        maker = self._training_maker()
        if maker is None:
            return
        forward = Forward(maker, generators)
        if inside_backward():
            forward = self._forwards.of_root_call(forward)
        self._show(forward, range(len(self._qparams)))

    def _enter_eval(self) -> None:
        self._show(Forward(self._eval_weights_of), range(len(self._qparams)))
        if self._saved is None:
            self._put(self._eval_rest())

    def _eval_rest(self) -> list[tuple[Slot, Tensor]]:
        """What eval shows besides the quantised weights: rounded ``float16`` parameters, and excluded aliases."""
        slots, tensors = self._eval_weights()
        made = dict(zip(slots, tensors, strict=True))
        rest = [(slot, made[slot]) for slot in slots[len(self._qparams) :]]
        rest += [(slot, made[first]) for slot, first in self._rest_ties if first in made]
        return rest + [(slot, made[first]) for slot, first in self._aliases_of_quantized]

    def _show(self, forward: Forward, indices: Sequence[int]) -> None:
        """Put the tensors of ``forward`` in the place of the whole model's weights, and note where it starts."""
        start = next_sequence_number()
        self._put_made(forward, indices)
        if not torch.is_grad_enabled():
            forward.before = start - 1
        self._open = (forward, start)

    def _put_made(self, forward: Forward, indices: Sequence[int]) -> None:
        """Make tensors of ``forward`` and put them in the place of the weights ``indices``."""
        with unseen_by_checkpoints():
            tensors = forward.make(indices)
        self._put(zip((self._qparams[index] for index in indices), tensors, strict=True))

    def _put(self, pairs: Iterable[tuple[Slot, Tensor]]) -> None:
        """Shadow parameters, remembering which: another quantizer on the same model has shadows of its own."""
        pairs = list(pairs)
        self._shown.update((slot, None) for slot, _ in pairs)
        shadows.put(pairs)

    def _take(self, slots: Iterable[Slot] | None = None) -> None:
        """Take away the shadows of ``slots``, or all that this quantizer has put."""
        slots = list(self._shown if slots is None else slots)
        shadows.take(slots)
        for slot in slots:
            self._shown.pop(slot, None)

    def _trace_forward(self, module: nn.Module) -> None:
        """The same inside a compiled graph: nothing is remembered in Python."""
        if module.training:
            self._before_training_forward()
            maker = self._training_maker()
            if maker is not None:
                shadows.put(zip(self._qparams, maker(range(len(self._qparams))), strict=True))
        else:
            slots = self._eval_slots()
            with torch.no_grad():
                made = dict(zip(slots, self._rounded(slots), strict=True))
            ties = [*self._rest_ties, *self._aliases_of_quantized]
            made.update((slot, made[first]) for slot, first in ties if first in made)
            shadows.put((slot, tensor + (slot.param - slot.param.detach())) for slot, tensor in made.items())

    # -- inner modules -----------------------------------------------------------------------------------------------

    @never_compiled_by_itself
    def _before_inner(self, module: nn.Module, args: tuple) -> None:
        if torch.compiler.is_compiling():
            shadows.guard(module)
            return
        if inside_backward():
            self._replay(module)
        self._before_reading(module)

    def _replay(self, module: nn.Module) -> None:
        """Give the weights of ``module`` that nothing stands for the tensors of the forward that is computed again."""
        missing = [index for index in self._members[module] if not self._qparams[index].is_shadowed]
        forward = self._forwards.current() if missing else None
        if forward is None:
            self._replayed.append(None)
            return
        # Without gradients this is the first run of a reentrant checkpoint within the recomputation: its node is the
        # one made last, and it will be the current one when this part is computed once more.
        start = next_sequence_number() - (not torch.is_grad_enabled())
        self._put_made(forward, missing)
        self._replayed.append((forward, start, missing))

    @never_compiled_by_itself
    def _after_inner(self, module: nn.Module, args: tuple, output: Any) -> None:
        if torch.compiler.is_compiling() or not inside_backward() or not self._replayed:
            return
        replayed = self._replayed.pop()
        if replayed is not None:
            forward, start, indices = replayed
            self._take(self._qparams[index] for index in indices)
            self._forwards.remember_replay(forward, start)

    # -- eval --------------------------------------------------------------------------------------------------------

    def _eval_slots(self) -> list[Slot]:
        """What eval replaces: the quantised weights, and with ``float16`` the other parameters, except those that
        another quantizer on this model quantises or learns."""
        if not self.float16:
            return list(self._qparams)
        foreign = {id(param) for other in self._neighbours() for entry in other._qparams for param in entry.params}
        return [*self._qparams, *(slot for slot in self._rest if id(slot.param) not in foreign)]

    def _neighbours(self) -> list[BaseQuantizer]:
        owners = (getattr(hook, "__self__", None) for hook in self.model._forward_pre_hooks.values())
        return [owner for owner in owners if isinstance(owner, BaseQuantizer) and owner is not self]

    def _eval_weights(self) -> tuple[list[Slot], list[Tensor]]:
        """The tensors that eval puts in the place of :meth:`_eval_slots`, made once per version of their sources."""
        slots = self._eval_slots()
        stamps = {slot: self._stamp(slot) for slot in slots}
        stale = [slot for slot in slots if self._eval_cache.get(slot, (None,))[0] != stamps[slot]]
        if stale:
            self._tell_faults()
            with torch.inference_mode(False), torch.no_grad():
                fresh = self._rounded(stale)
            for slot, tensor in zip(stale, fresh, strict=True):
                # The source is kept too: as long as it lives, no other tensor has its address.
                self._eval_cache[slot] = (stamps[slot], tensor, slot.param.detach())
        return slots, [self._eval_cache[slot][1] for slot in slots]

    def _eval_weights_of(self, indices: Sequence[int]) -> list[Tensor]:
        """A :data:`Maker` that holds no tensor, so that remembered forwards keep no old weights alive.

        While :meth:`quantize` is in force, the weights themselves: shadowed too, so that a compiled graph reads them
        where it reads every other weight.
        """
        entries = [self._qparams[index] for index in indices]
        if self._saved is not None:
            return [entry.param.view_as(entry.param) for entry in entries]
        tensors = self._eval_weights()[1]
        pairs = zip(entries, indices, strict=True)
        return [straight_through([entry.param], [tensors[index]])[0] for entry, index in pairs]

    def _rounded(self, slots: Sequence[Slot]) -> list[Tensor]:
        """Each slot's value as an export keeps it; tied weights are made once."""
        entries = [slot for slot in slots if isinstance(slot, QuantizedParameter)]
        firsts = untied(entries)
        made = dict(zip(firsts, self._quantized_weights(firsts) if firsts else [], strict=True))
        return [
            made[slot.first] if isinstance(slot, QuantizedParameter) else in_half_precision(slot.param)
            for slot in slots
        ]

    def _stamp(self, slot: Slot) -> tuple:
        """Changes whenever the slot's parameter, or what was learned for it, does; each time where that is not seen.

        Fused optimizers write without moving a tensor's version, so their steps count too.
        """
        tensors = slot.params if isinstance(slot, QuantizedParameter) else [slot.param]
        if any(tensor.is_inference() for tensor in tensors):
            return (object(),)
        versions = tuple((tensor.data_ptr(), tensor._version, tensor.device, tensor.dtype) for tensor in tensors)
        return (*versions, optimizer_steps(), self._eval_options())

    def _eval_options(self) -> Hashable:
        """Attributes that decide what eval sees."""
        return None

    # -- quantise in place -------------------------------------------------------------------------------------------

    def quantize(self) -> bool:
        """Replace the weights by their quantised values, in place.

        It holds until :meth:`unquantize` or the next training forward.

        Returns:
            True, or False when they are replaced already.
        """
        if self._saved is not None:
            return False
        self._eval_cache.clear()  # a write through .data is not seen by a version, and this may be made permanent
        slots, tensors = self._eval_weights()
        with torch.no_grad():
            self._saved = {}
            for slot, tensor in zip(slots, tensors, strict=True):
                if not self._is_tied(slot):
                    self._saved[slot] = (slot.param.detach().clone(), tensor)
                slot.param.copy_(tensor)
        return True

    def unquantize(self) -> None:
        """Put the float weights back after :meth:`quantize`; harmless when there is nothing to put back.

        A weight that was written in the meantime, by ``load_state_dict`` for one, keeps what was written.
        """
        if self._saved is None:
            return
        with torch.no_grad():
            for slot, (value, _) in self._saved.items():
                if not self._is_rewritten(slot):
                    slot.param.copy_(value)
        self._saved = None

    @contextmanager
    def enter_quantize(self) -> Iterator[None]:
        """Context in which the model holds its quantised weights; the float weights are back afterwards."""
        changed = self.quantize()
        try:
            yield
        finally:
            if changed:
                self.unquantize()

    def bake(self) -> None:
        """Make the quantised weights permanent and detach: what is left is a plain model."""
        self.quantize()
        self._saved = None
        self.detach()

    @staticmethod
    def _is_tied(slot: Slot) -> bool:
        return isinstance(slot, QuantizedParameter) and slot.other is not None

    def _float_value(self, slot: Slot) -> Tensor:
        """The slot's training value, whether or not :meth:`quantize` is in force."""
        slot = getattr(slot, "first", slot)
        if self._saved is None or self._is_rewritten(slot):
            return slot.param.detach()
        return self._saved.get(slot, (slot.param.detach(),))[0]

    def _is_rewritten(self, slot: Slot) -> bool:
        """Whether the slot's parameter holds something else than :meth:`quantize` has written."""
        if self._saved is None or slot not in self._saved:
            return True
        written = self._saved[slot][1].to(slot.param)
        return not torch.equal(slot.param.nan_to_num(), written.nan_to_num())

    # -- others ------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters
        values = {name: getattr(self, name) for name in parameters if name != "model"}
        changed = [f"{name}={value}" for name, value in values.items() if value != parameters[name].default]
        return f"{type(self).__name__}({','.join([f'model={self.model!r}', *changed])})"

    def __getstate__(self) -> dict:
        transient: dict[str, Any] = {
            "_eval_cache": {},
            "_shown": {},
            "_open": None,
            "_replayed": [],
            "_saved_versions": {},
        }
        return {**self.__dict__, **transient}
