"""Whether a model is still the one that its quantizer was attached to, and whether its weights can be read.

Looked at when a forward begins, and when a size or an export is asked for: what is quantised was chosen at attaching,
and is not what the model computes with if the model has changed since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from operator import attrgetter, is_, is_not
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..reference.quantize import PACKABLE
from .admission import FSDP1, is_flattened, is_offloaded, look_at_shards, offloaded, refuse_fsdp1, refuse_tensor
from .export import warn_of_unstorable
from .selection import Selection, Slot, learned_of

ANEW = "call quantizer.detach() and attach a new quantizer"
_PLAIN = {torch.Tensor, nn.Parameter}
_FLOAT32, _PACKABLE = {torch.float32}, set(PACKABLE)
_dtype, _is_meta = attrgetter("dtype"), attrgetter("is_meta")  # each forward asks every weight


class Presence:
    """The places, ties and shapes of a model's parameters, as they were when its quantizer was attached.

    Args:
        who: the quantizer's name, for errors.
        model: the model.
        selection: its parameters, with what is learned for them.
    """

    def __init__(self, who: str, model: nn.Module, selection: Selection) -> None:
        self._who, self._model, self._type = who, model, type(model)
        self._selection, self._weights = selection, selection.quantised
        self._shapes = [entry.param.shape for entry in self._weights]
        learned = [
            Slot(entry.module, entry.learned_name, entry.full_name)
            for entry in selection.originals
            if entry.learned_name is not None
        ]
        learned += [
            Slot(entry.module, entry.ends_name, entry.full_name)
            for entry in selection.originals
            if entry.ends_name is not None
        ]
        self._weights_once = [entry for entry in selection.originals if entry.learned_name is not None]
        ties = [slot for slot, _ in selection.ties()]
        self._slots: list[Slot] = [*self._weights, *learned, *selection.rest, *ties]
        self._told = not _PACKABLE.issuperset(entry.param.dtype for entry in self._weights)  # at attaching
        self._read = len(self._weights) + len(learned)
        self._places = [(slot.module, slot.name) for slot in self._slots]
        self._shared = _shared(module._parameters[name] for module, name in self._places)
        links = dict(_links(model, self._slots))
        self._links, self._children = list(links), list(links.values())

    def check(self) -> None:
        """Look at the model as it is. Asks the device for nothing.

        Raises:
            RuntimeError: with the name of a weight, what is the matter with it, and what to do.
            TypeError: the model has been sharded by FSDP1, or its weights replaced by a tensor subclass.
        """
        children = [parent._modules.get(name) for parent, name in self._links]
        params = [module._parameters.get(name) for module, name in self._places]
        if any(map(is_, params, repeat(None))) or any(map(is_not, children, self._children)):
            raise self._gone(params)
        if _shared(params) != self._shared:
            raise self._tied_anew(params)
        read = cast("list[Tensor]", params[: self._read])
        if not _PLAIN.issuperset(map(type, read)) or type(self._model) is not self._type:
            self._refuse_foreign(read)
            look_at_shards(self._who, self._selection)
        if self._selection.mesh is not None:
            read = [*(slot.param for slot in self._weights), *learned_of(self._weights_once)]
        weights, learned = read[: len(self._shapes)], read[len(self._shapes) :]
        if [weight.shape for weight in weights] != self._shapes:
            raise self._reshaped(weights)
        if not self._told and not _PACKABLE.issuperset(map(_dtype, weights)):
            self._tell_unstorable()
        if not _FLOAT32.issuperset(map(_dtype, learned)):
            raise self._cast(learned)
        if any(map(_is_meta, read)):
            self._refuse_offloaded(read)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            self._refuse_transformed(read)
        if forward_ad._current_level >= 0:
            self._refuse_dual(read)

    def _tell_unstorable(self) -> None:
        """Warn once that the weights have been cast to what no packed file holds, as at attaching."""
        self._told = True
        warn_of_unstorable(self._who, self._model, self._selection)

    # -- what is the matter --------------------------------------------------------------------------------------------

    def _gone(self, params: Sequence[Tensor | None]) -> RuntimeError:
        refuse_fsdp1(self._who, self._weights)
        modules = set(self._model.modules())
        for slot, param in zip(self._slots, params, strict=True):
            if slot.module not in modules:
                return self._changed(f"the module of {slot.full_name} is no longer part of the model")
            if param is None:
                return self._changed(
                    f"the parameter {slot.full_name} is gone from its module (pruned, parametrised, fused, removed)"
                )
        return self._changed(f"modules of {self._slots[0].full_name.partition('.')[0]} have other names now")

    def _tied_anew(self, params: Sequence[Tensor | None]) -> RuntimeError:
        """Tied places have got tensors of their own, or one place the tensor of another."""
        pairs = zip(self._slots, _shared(params), self._shared, strict=True)
        slot, now, then = next((slot, now, then) for slot, now, then in pairs if now != then)
        other = self._slots[min(now, then)].full_name
        if now < then:
            return self._changed(f"{slot.full_name} is tied to {other}, and was not")
        return self._changed(f"{slot.full_name} is no longer tied to {other}")

    def _reshaped(self, weights: Sequence[Tensor]) -> RuntimeError:
        if any(hasattr(weight, "_fsdp_flattened") for weight in weights):
            return RuntimeError(f"{self._who}: the model has been sharded by FullyShardedDataParallel, {FSDP1}")
        pairs = zip(self._weights, weights, self._shapes, strict=True)
        entry, now, then = next((entry, weight.shape, then) for entry, weight, then in pairs if weight.shape != then)
        return self._changed(f"{entry.full_name} has shape {list(now)}, and had {list(then)}")

    def _cast(self, learned: Sequence[Tensor]) -> RuntimeError:
        slots = self._slots[len(self._shapes) : self._read]
        pairs = zip(slots, learned, strict=True)
        slot, dtype = next((slot, each.dtype) for slot, each in pairs if each.dtype != torch.float32)
        return RuntimeError(
            f"{self._who}: {slot.name} of {slot.full_name} must be float32, in which what is learned is kept, got "
            f"{dtype}; cast the model by model.to(dtype), which leaves it as it is, or load a state that has it in "
            "float32"
        )

    def _changed(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"{self._who}: {what}; the model has changed since the quantizer was attached. Detach and attach anew: "
            f"{ANEW}, behind everything that changes weights"
        )

    def _refuse_foreign(self, read: Sequence[Tensor]) -> None:
        if is_flattened(type(self._model)):
            raise TypeError(f"{self._who}: the model has been sharded by FullyShardedDataParallel, {FSDP1}")
        for slot, tensor in zip(self._slots, read, strict=False):
            refuse_tensor(self._who, slot.full_name, tensor)

    def _refuse_offloaded(self, read: Sequence[Tensor]) -> None:
        for slot, tensor in zip(self._slots, read, strict=False):
            if is_offloaded(slot.module, tensor) or (tensor.is_meta and not all(each.is_meta for each in read)):
                raise RuntimeError(f"{self._who}: {offloaded(slot.full_name)}")

    def _refuse_dual(self, read: Sequence[Tensor]) -> None:
        for slot, tensor in zip(self._slots, read, strict=False):
            if forward_ad.unpack_dual(tensor).tangent is not None:
                raise RuntimeError(
                    f"{self._who}: {slot.full_name} has a tangent (torch.autograd.forward_ad), which the quantizer "
                    "does not pass on. Differentiate what quantizer.bake() leaves of a copy of the model "
                    "(copy.deepcopy), or use a backward"
                )

    def _refuse_transformed(self, read: Sequence[Tensor]) -> None:
        for slot, tensor in zip(self._slots, read, strict=False):
            if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                raise RuntimeError(
                    f"{self._who}: {slot.full_name} is transformed by torch.func (grad, vmap, jacrev, ...), which the "
                    "quantizer does not support. Transform what quantizer.bake() leaves of a copy of the model "
                    "(copy.deepcopy), or use torch.autograd"
                )


def _shared(params: Iterable[Tensor | None]) -> list[int]:
    """For each the first that is the same tensor."""
    ids = list(map(id, params))
    first = dict(zip(reversed(ids), reversed(range(len(ids))), strict=True))
    return [first[each] for each in ids]


def _links(model: nn.Module, slots: Iterable[Slot]) -> Iterator[tuple[tuple[nn.Module, str], nn.Module | None]]:
    """On the ways from the model to its parameters: each module that holds another, the name, and the one held."""
    for path in {slot.full_name.rpartition(".")[0]: None for slot in slots}:
        module = model
        for name in path.split(".") if path else ():
            child = module._modules[name]
            yield (module, name), child
            module = cast(nn.Module, child)
