"""What a quantised model is written to a file as: its weights, everything else under its own name, and what is tied."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from ..files.tensor_bytes import memory_keys
from ..reference.quantize import PACKABLE
from .input_quantizer import InputQuantizer, export_inputs, without_inputs
from .selection import QuantizedParameter, Selection, Slot, learned_of, params_of
from .shards import whole
from .stored_input import StoredInput


class ExportedWeight(NamedTuple):
    """A quantised weight on its way to a packed file; ``aliases`` are the other names of the same tensor.

    Where the levels are not those of ``functional.quantize`` they are given, with their ranges, see
    :func:`diffq_fast.packed.tensor.pack_levels`. With ``range_scope`` "steps" the levels are signed, and the ranges are
    the groups' step codes, see :func:`diffq_fast.packed.coding.code_levels`; the widths are the groups' classes.
    """

    name: str
    weight: Tensor
    widths: Tensor
    group_size: int
    range_scope: str
    aliases: list[str] = []  # noqa: RUF012  (replaced, never written to)
    levels: Tensor | None = None
    ranges: Tensor | None = None  # known beforehand, or, where levels are given, theirs
    level_count: int | None = None
    short: tuple[Tensor, Tensor, int] | None = None  # codes, units and groups per unit that give the ranges


class ExportedModel(NamedTuple):
    """A whole model on its way to a packed file.

    Attributes:
        weights: those that are quantised, each made when it is asked for; to be gone through once.
        plain: every other entry of the state_dict by name, with its training value.
        half: names among ``plain`` that are kept in half precision.
        buffers: names among ``plain`` that are buffers.
        quantizer: class and arguments, as the file's header holds them.
        suffix: of the names of what is learned; None: nothing is.
        inputs: how the inputs of layers are rounded, by the layer's name.
    """

    weights: Iterator[ExportedWeight]
    plain: dict[str, Tensor]
    half: set[str]
    buffers: set[str]
    quantizer: dict[str, Any]
    suffix: str | None
    inputs: dict[str, StoredInput] = {}  # noqa: RUF012  (replaced, never written to)


class Place(NamedTuple):
    """A parameter of the model, and all its names in the state_dict: those of buffers over the same memory too."""

    slot: Slot
    param: nn.Parameter
    names: list[str]


# One weight of a packed file, given its training value and the range of all its elements, float32 ``[1, 2]``.
Exported = Callable[[QuantizedParameter, Tensor, Tensor], ExportedWeight]


class Exporter:
    """Reads a model for an export.

    Args:
        who: the quantizer's name, for errors.
        model: the model.
        selection: its weights.
        float16: keep the parameters that are not quantised in half precision.
        float_values: gives the training values of parameters.
    """

    def __init__(
        self,
        who: str,
        model: nn.Module,
        selection: Selection,
        float16: bool,
        float_values: Callable[[Sequence[Slot]], list[Tensor]],
    ) -> None:
        self._who, self._model, self._selection = who, model, selection
        self._float16, self._float_values = float16, float_values

    def model(
        self, exported: Exported, arguments: Mapping[str, Any], suffix: str | None, learned: bool
    ) -> ExportedModel:
        """The whole model.

        Args:
            exported: gives one weight.
            arguments: of the quantizer.
            suffix: of the names of what is learned; None: nothing is.
            learned: with what was learned too, so that training can go on from the file.

        Raises:
            ValueError: a weight has NaN or infinite elements, or is not in the state_dict.
            TypeError: an entry of the state_dict is no tensor.
        """
        state = self._model.state_dict(keep_vars=True)
        rounds_inputs = InputQuantizer in map(type, self._model.modules())
        if rounds_inputs:
            state = without_inputs(self._model, state)
        places = self.places(state)
        weights = self.weights(exported, places)
        plain = self._plain(state, places, suffix, learned)
        buffers = {name for name, _ in self._model.named_buffers() if name in plain}
        half = self._half(places) & plain.keys()
        described = {"class": self._who, "arguments": json_value(arguments)}
        inputs = export_inputs(self._model, learned) if rounds_inputs else {}
        return ExportedModel(weights, plain, half, buffers, described, suffix, inputs)

    def weights(self, exported: Exported, places: Sequence[Place] | None = None) -> Iterator[ExportedWeight]:
        """The quantised weights, each once, under the names that they have in the state_dict."""
        places = self.places() if places is None else places
        originals = [place for place in places if getattr(place.slot, "tied_to", self) is None]
        own = [self._stored_name(place) for place in originals]
        taken = set(own)
        aliases = [[name for name in place.names if name not in taken] for place in originals]
        return self._made(exported, own, aliases)

    @torch.no_grad()
    def _made(self, exported: Exported, names: Sequence[str], aliases: Sequence[list[str]]) -> Iterator[ExportedWeight]:
        pairs = zip(names, aliases, strict=True)
        for (entry, value, ranges), (name, others) in zip(self.sound_ranges(), pairs, strict=True):
            yield exported(entry, value, ranges)._replace(name=name, aliases=others)

    def sound_ranges(self) -> Iterator[tuple[QuantizedParameter, Tensor, Tensor]]:
        """Each untied weight with its training value and its range; ValueError where something cannot be exported."""
        if self._float16:
            self._refuse_beyond_half(self._selection.rest)
        for entry in self._selection.originals:
            (value,) = self._float_values([entry])
            ranges = functional.weight_range([value], group_size=0)
            if not bool(ranges.isfinite().all()):  # a NaN or an infinity shows in the range
                raise ValueError(f"{self._who}: {entry.full_name} has NaN or infinite elements and cannot be exported")
            yield entry, value, ranges

    def _refuse_beyond_half(self, slots: Sequence[Slot]) -> None:
        for slot, value in zip(slots, self._float_values(slots), strict=True):
            if value.is_floating_point() and bool((value.isfinite() & ~value.half().isfinite()).any()):
                raise ValueError(
                    f"{self._who}: {slot.full_name} has elements beyond 65,504, the largest of half precision "
                    "(float16=True)"
                )

    def places(self, state: Mapping[str, Any] | None = None) -> list[Place]:
        """Every place of a parameter: those of quantised weights, then one for each other parameter."""
        state = self._model.state_dict(keep_vars=True) if state is None else state
        slots: list[Slot] = [*self._selection.quantised, *self._selection.rest]
        params = params_of(slots)
        keys = memory_keys({**state, **dict(enumerate(params))})
        by_memory: dict[Any, list[str]] = {}
        for name in state:
            if name in keys:
                by_memory.setdefault(keys[name], []).append(name)
        names = [by_memory.get(keys[index], []) for index in range(len(slots))]
        for index, slot in enumerate(self._selection.quantised):
            copy = state.get(slot.full_name)
            if not names[index] and isinstance(copy, Tensor) and torch.equal(copy, params[index]):
                names[index] = [slot.full_name]
        return [Place(*each) for each in zip(slots, params, names, strict=True)]

    def _stored_name(self, place: Place) -> str:
        """What the state_dict calls the weight: its full name, unless the model gives another."""
        full_name = place.slot.full_name
        if not place.names:
            raise ValueError(
                f"{self._who}: {full_name} is quantised, but the model's state_dict makes other values "
                "of it; exclude it"
            )
        return next((name for name in place.names if name.endswith(full_name)), place.names[0])

    def _plain(
        self, state: Mapping[str, Any], places: Sequence[Place], suffix: str | None, learned: bool
    ) -> dict[str, Tensor]:
        """Every entry of the state_dict that is not a quantised weight, with its training value."""
        count = len(self._selection.quantised)
        left_out = {name for place in places[:count] for name in place.names}
        if suffix is not None:
            left_out |= self._names_of_learned(state, ends_only=learned)  # a file has the ranges anyway
        rest = places[count:]
        values: dict[str, Tensor] = {}
        for place, value in zip(rest, self._float_values([place.slot for place in rest]) if rest else [], strict=True):
            values |= dict.fromkeys(place.names, value)
        plain, made = {}, dict[int, Tensor]()
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{self._who}: {name} of the state_dict is no tensor and cannot be exported")
            if name not in left_out:
                found = values.get(name, value)
                made[id(found)] = made[id(found)] if id(found) in made else whole(found)
                plain[name] = made[id(found)]
        return plain

    def _names_of_learned(self, state: Mapping[str, Any], ends_only: bool) -> set[str]:
        """The names, in the state_dict, of what is learned for the weights, or of the ends of ranges alone."""
        originals = self._selection.originals
        params = learned_of(originals) if not ends_only else [each.ends for each in originals if each.ends_name]
        keys = memory_keys({**state, **dict(enumerate(params))})
        owned = {keys[index] for index in range(len(params))}
        return {name for name in state if keys.get(name) in owned}

    def _half(self, places: Sequence[Place]) -> set[str]:
        """The names, in the state_dict, of what is kept in half precision."""
        rest = places[len(self._selection.quantised) :] if self._float16 else []
        return {name for place in rest if place.param.is_floating_point() for name in place.names}


def warn_of_unstorable(who: str, model: nn.Module, selection: Selection) -> None:
    """Tell when a quantizer is attached what :func:`diffq_fast.save` will refuse at the end of the training."""
    found = [
        f"{entry.full_name} is {entry.param.dtype} (packed weights are float32, bfloat16 or float16: convert the "
        "model, or exclude it)"
        for entry in selection.originals
        if entry.param.dtype not in PACKABLE
    ]
    plain = [(slot.full_name, slot.param) for slot in selection.rest] + list(_stored_buffers(model))
    found += [f"{name} is not dense" for name, tensor in plain if tensor.layout != torch.strided or tensor.is_quantized]
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        warnings.warn(
            f"{who}: the model can be trained, but diffq_fast.save will refuse it: {'; '.join(found[:3])}{more}",
            stacklevel=5,
        )


def _stored_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that are in the model's state_dict."""
    for module_name, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{module_name}.{name}" if module_name else name, buffer


def json_value(value: Any) -> Any:
    """The same as values of JSON: numbers of numpy and torch as Python's, sets as sorted lists, all else as text."""
    if isinstance(value, Mapping):
        return {str(key): json_value(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(json_value(each) for each in value)
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if hasattr(value, "item") and getattr(value, "shape", None) in ((), (1,)):
        return json_value(value.item())
    return str(value)
