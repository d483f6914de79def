"""The weights that eval sees: made once per version of their sources, or written into the parameters for a while.

A version is what torch counts, and what the memory holds: numpy, ``.data`` and averaging write without being counted.
Memory of a device cannot be compared without waiting for it, so there the weights are made in each forward.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .. import functional
from .attachment import attached_to
from .gathering import whole_together
from .optimizer_steps import optimizer_steps
from .selection import QuantizedParameter, Selection, Slot, in_half_precision, params_of, untied
from .straight_through import straight_through


class Rounding(Protocol):
    """What rounds the weights: the quantizer."""

    def eval_weights(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        """The weights as they come back from an export, in the parameters' dtypes."""

    def eval_options(self) -> Hashable:
        """Attributes that decide what eval sees."""

    def tell_faults(self) -> None:
        """Warn of what was counted on the device since the last time."""


class Kept(NamedTuple):
    """What eval may show again: of which version it is, the tensor, and its source, which is kept too: as long as it
    lives, no other tensor has its address. ``seen`` are fingerprints of the source's memory, ``pieces``."""

    stamp: tuple
    tensor: Tensor
    source: Tensor
    pieces: list[tuple[int, int]]
    seen: list[list[int]]


class EvalWeights:
    """The quantised weights of a model, and with ``float16`` its other parameters in half precision.

    Args:
        rounding: rounds the weights.
        model: with other quantizers on it, perhaps.
        selection: its weights.
        float16: round the parameters that are not quantised too.

    Attributes:
        kept: what eval has made and may show again.
        in_place: whether the parameters themselves hold the quantised weights.
    """

    def __init__(self, rounding: Rounding, model: nn.Module, selection: Selection, float16: bool) -> None:
        self._rounding, self._model, self._selection, self._float16 = rounding, model, selection, float16
        self.kept: dict[Slot, Kept] = {}
        self._look = 0
        self._replaced: dict[Slot, tuple[Tensor, Tensor]] = {}
        self.in_place = False

    # -- for a forward -----------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Training begins: put the float weights back, and keep nothing."""
        self.put_back()
        self.kept.clear()

    def make(self, indices: Sequence[int]) -> list[Tensor]:
        """The quantised weights of these indices. A ``Maker`` that holds no tensor, so that remembered forwards keep no
        old weights alive.

        While they are in place, the parameters themselves: shadowed too, so that a compiled graph reads them where it
        reads every other weight.
        """
        entries = [self._selection.quantised[index] for index in indices]
        if self._selection.mesh is not None:
            return self._made_of_shards(entries)
        if self.in_place:
            return [entry.param.view_as(entry.param) for entry in entries]
        tensors = self._made()[1]
        pairs = zip(entries, indices, strict=True)
        return [straight_through([entry.param], [tensors[index]])[0] for entry, index in pairs]

    def _made_of_shards(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        """The same where weights are sharded: made anew each time, of the trained values."""
        owners = untied(entries)
        with torch.no_grad():
            made = dict(zip(owners, self._rounding.eval_weights(owners) if owners else [], strict=True))
        weights = [entry.visible for entry in owners]
        rounded = [made[entry].to(weight.dtype) for entry, weight in zip(owners, weights, strict=True)]
        shown = dict(zip(owners, straight_through(weights, rounded), strict=True))
        return [shown[entry.original] for entry in entries]

    def rest(self) -> list[tuple[Slot, Tensor]]:
        """What eval shows besides: rounded ``float16`` parameters, and excluded places of quantised weights."""
        ties, count = self._selection.ties(), len(self._selection.quantised)
        if self.in_place or self._selection.mesh is not None or (not ties and len(self._slots()) == count):
            return []
        slots, tensors = self._made()
        made = dict(zip(slots, tensors, strict=True))
        rest = [(slot, made[slot]) for slot in slots[count:]]
        return rest + [(slot, made[shown]) for slot, shown in ties if shown in made]

    def made_anew(self) -> list[tuple[Slot, Tensor]]:
        """All that eval shows, with nothing remembered: for compiled graphs."""
        slots = self._slots()
        with torch.no_grad():
            made = dict(zip(slots, self._rounded(slots), strict=True))
        made.update((slot, made[shown]) for slot, shown in self._selection.ties() if shown in made)
        return list(made.items())

    def _slots(self) -> list[Slot]:
        """What eval replaces: the quantised weights, and with ``float16`` the other parameters, except those that
        another quantizer on this model quantises or learns."""
        quantised = self._selection.quantised
        if not self._float16:
            return list(quantised)
        neighbours = [each for each in attached_to(self._model) if each is not self._rounding]
        foreign = {id(param) for each in neighbours for weight in each.weights for param in weight.parameters()}
        return [*quantised, *(slot for slot in self._selection.rest if id(slot.param) not in foreign)]

    def _made(self) -> tuple[list[Slot], list[Tensor]]:
        """The tensors that eval puts in the place of :meth:`_slots`, made once per version of their sources."""
        slots = self._slots()
        options = self._rounding.eval_options()
        stamps = {slot: _stamp(slot, options) for slot in slots}
        known = [slot for slot in slots if slot in self.kept and self.kept[slot].stamp == stamps[slot]]
        same = self._unwritten(known)
        stale = [slot for slot in slots if slot not in same]
        if stale:
            self._rounding.tell_faults()
            pieces = [
                [functional.memory.piece_of(tensor) for tensor in _sources(slot) if _is_seen(tensor)] for slot in stale
            ]
            seen = [[functional.memory.all_fingerprints(piece) for piece in each] for each in pieces]
            with torch.inference_mode(False), torch.no_grad():
                fresh = self._rounded(stale)
            for slot, tensor, piece, prints in zip(stale, fresh, pieces, seen, strict=True):
                self.kept[slot] = Kept(stamps[slot], tensor, slot.param.detach(), piece, prints)
        return slots, [self.kept[slot].tensor for slot in slots]

    def _unwritten(self, slots: Sequence[Slot]) -> set[Slot]:
        """Those of ``slots`` whose memory holds what their tensors were made of, as far as one look tells: all of a
        tensor of up to 64 kB, and 64 kB spread over a larger one, others at each look."""
        self._look += 1
        kept = [self.kept[slot] for slot in slots]
        pieces = [piece for each in kept for piece in each.pieces]
        expected = [seen[self._look % len(seen)] for each in kept for seen in each.seen]
        found = functional.memory.fingerprints(pieces, self._look)
        if found == expected:
            return set(slots)
        written = {piece for piece, was, now in zip(pieces, expected, found, strict=True) if was != now}
        return {slot for slot, each in zip(slots, kept, strict=True) if written.isdisjoint(each.pieces)}

    def _rounded(self, slots: Sequence[Slot]) -> list[Tensor]:
        """Each slot's value as an export keeps it; tied weights are made once."""
        entries = untied(slot for slot in slots if isinstance(slot, QuantizedParameter))
        made = dict(zip(entries, self._rounding.eval_weights(entries) if entries else [], strict=True))
        return [
            made[slot.original] if isinstance(slot, QuantizedParameter) else in_half_precision(slot.param)
            for slot in slots
        ]

    # -- in place ----------------------------------------------------------------------------------------------------

    def put_in_place(self) -> bool:
        """Write the quantised weights into the parameters. False when they are there already."""
        if self.in_place:
            return False
        self.kept.clear()  # a write through .data is not seen by a version, and this may be made permanent
        slots, tensors = self._made()
        with torch.no_grad():
            self._replaced.clear()
            self.in_place = True
            for slot, tensor in zip(slots, tensors, strict=True):
                if getattr(slot, "tied_to", None) is None:
                    self._replaced[slot] = (slot.param.detach().clone(), tensor)
                slot.param.copy_(tensor)
        return True

    def put_back(self) -> None:
        """Put the float weights back; one that was written in the meantime keeps what was written."""
        if not self.in_place:
            return
        with torch.no_grad():
            for slot, (value, _) in self._replaced.items():
                if not self._is_rewritten(slot):
                    slot.param.copy_(value)
        self.keep_in_place()

    def keep_in_place(self) -> None:
        """Make what is in the parameters permanent."""
        self._replaced.clear()
        self.in_place = False

    def float_values(self, slots: Sequence[Slot]) -> list[Tensor]:
        """The slots' training values, whether or not the quantised weights are in place."""
        if not self.in_place:
            return list(map(torch.Tensor.detach, params_of(slots)))
        owners = [getattr(slot, "original", slot) for slot in slots]
        replaced = [None if self._is_rewritten(owner) else self._replaced[owner][0] for owner in owners]
        return [owner.param.detach() if value is None else value for owner, value in zip(owners, replaced, strict=True)]

    def whole_values(self, slots: Sequence[Slot]) -> list[Tensor]:
        """:meth:`float_values`, all of sharded ones: every process must ask."""
        values = self.float_values(slots)
        return values if self._selection.mesh is None else whole_together(values)

    def _is_rewritten(self, slot: Slot) -> bool:
        """Whether the slot's parameter holds something else than :meth:`put_in_place` has written."""
        if slot not in self._replaced:
            return True
        written = self._replaced[slot][1].to(slot.param)
        return not torch.equal(slot.param.nan_to_num(), written.nan_to_num())

    def __getstate__(self) -> dict:
        return {**self.__dict__, "kept": {}}


def _sources(slot: Slot) -> list[nn.Parameter]:
    """What the slot's tensor is made of: its parameter, and what was learned for it."""
    return slot.params if isinstance(slot, QuantizedParameter) else [slot.param]


def _is_seen(tensor: Tensor) -> bool:
    """Whether it can be told that a tensor was written."""
    return tensor.is_cpu and not tensor.is_inference()


def _stamp(slot: Slot, options: Hashable) -> tuple:
    """Changes whenever torch counts a write to the slot's parameter, or to what was learned for it; each time where
    writes are not seen.

    Fused optimizers write without moving a tensor's version, so their steps count too.
    """
    tensors = _sources(slot)
    if not all(map(_is_seen, tensors)):
        return (object(),)
    return (*[(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors], optimizer_steps(), options)
