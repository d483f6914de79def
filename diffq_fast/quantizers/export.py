"""What a quantised model is written to a file as: its weights, everything else under its own name, and what is tied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from ..files.tensor_bytes import memory_key
from .selection import QuantizedParameter, Selection, Slot


class ExportedWeight(NamedTuple):
    """A quantised weight on its way to a packed file; ``aliases`` are the other names of the same tensor.

    Where the levels are not those of ``functional.quantize`` they are given, with their ranges, see
    :func:`diffq_fast.packed.tensor.pack_levels`.
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


class ExportedModel(NamedTuple):
    """A whole model on its way to a packed file.

    Attributes:
        weights: those that are quantised.
        plain: every other entry of the state_dict by name, with its training value.
        half: names among ``plain`` that are kept in half precision.
        buffers: names among ``plain`` that are buffers.
    """

    weights: list[ExportedWeight]
    plain: dict[str, Tensor]
    half: set[str]
    buffers: set[str]


class Exporter:
    """Reads a model for an export.

    Args:
        who: the quantizer's name, for errors.
        model: the model.
        selection: its weights.
        float16: keep the parameters that are not quantised in half precision.
        float_value: the training value of a parameter.
    """

    def __init__(
        self,
        who: str,
        model: nn.Module,
        selection: Selection,
        float16: bool,
        float_value: Callable[[Slot], Tensor],
    ) -> None:
        self._who, self._model, self._selection = who, model, selection
        self._float16, self._float_value = float16, float_value

    def model(
        self, exported: Callable[[QuantizedParameter, Tensor], ExportedWeight], learned: bool = False
    ) -> ExportedModel:
        """The whole model.

        Args:
            exported: gives the weight of an entry, from the range of all its elements, float32 ``[1, 2]``.
            learned: with what was learned too, so that training can go on from the file.

        Raises:
            ValueError: a weight has NaN or infinite elements, or is not in the state_dict.
            TypeError: an entry of the state_dict is no tensor.
        """
        state = self._model.state_dict(keep_vars=True)
        names = self.names(state)
        weights = self.weights(exported, names)
        plain = self._plain(state, names, learned)
        buffers = {name for name, _ in self._model.named_buffers() if name in plain}
        return ExportedModel(weights, plain, self._half(names) & plain.keys(), buffers)

    def weights(
        self,
        exported: Callable[[QuantizedParameter, Tensor], ExportedWeight],
        names: Mapping[int, list[str]] | None = None,
    ) -> list[ExportedWeight]:
        """The quantised weights, each once, under the names that they have in the state_dict."""
        entries = self._selection.originals
        names = self.names() if names is None else names
        ranges = self.sound_ranges()
        own = {entry: self._stored_name(entry, names) for entry in entries}
        taken = set(own.values())
        return [
            exported(entry, ranges[entry])._replace(
                name=own[entry], aliases=[name for name in names[id(entry.param)] if name not in taken]
            )
            for entry in entries
        ]

    def sound_ranges(self) -> dict[QuantizedParameter, Tensor]:
        """The range of each whole weight, float32 ``[1, 2]``; ValueError where something cannot be exported."""
        ranges = {}
        for entry in self._selection.originals:  # a NaN or an infinity shows in the range: cheaper than a mask
            ranges[entry] = functional.weight_range([self._float_value(entry)], group_size=0)
            if not bool(ranges[entry].isfinite().all()):
                raise ValueError(f"{self._who}: {entry.full_name} has NaN or infinite elements and cannot be exported")
        for slot in self._selection.rest if self._float16 else ():
            value = self._float_value(slot)
            if value.is_floating_point() and bool((value.isfinite() & ~value.half().isfinite()).any()):
                raise ValueError(
                    f"{self._who}: {slot.full_name} has elements beyond 65,504, the largest of half precision "
                    "(float16=True)"
                )
        return ranges

    def names(self, state: Mapping[str, Any] | None = None) -> dict[int, list[str]]:
        """All names of each parameter in ``state_dict``, buffers over the same memory too, by the parameter's id."""
        state = self._model.state_dict(keep_vars=True) if state is None else state
        by_memory: dict[Any, list[str]] = {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                by_memory.setdefault(memory_key(value), []).append(name)
        slots: Iterable[Slot] = (*self._selection.quantised, *self._selection.rest)
        names = {id(slot.param): by_memory.get(memory_key(slot.param), []) for slot in slots}
        for slot in self._selection.quantised:
            copy = state.get(slot.full_name)
            if not names[id(slot.param)] and isinstance(copy, Tensor) and torch.equal(copy, slot.param):
                names[id(slot.param)] = [slot.full_name]
        return names

    def _stored_name(self, entry: QuantizedParameter, names: Mapping[int, list[str]]) -> str:
        """What the state_dict calls the weight: its full name, unless the model gives another."""
        candidates = names.get(id(entry.param), [])
        if not candidates:
            raise ValueError(
                f"{self._who}: {entry.full_name} is quantised, but the model's state_dict makes other values "
                "of it; exclude it"
            )
        return next((name for name in candidates if name.endswith(entry.full_name)), candidates[0])

    def _plain(self, state: Mapping[str, Any], names: Mapping[int, list[str]], learned: bool) -> dict[str, Tensor]:
        """Every entry of the state_dict that is not a quantised weight, with its training value."""
        entries = self._selection.quantised
        quantised = {name for entry in entries for name in names.get(id(entry.param), [])}
        logits = set() if learned else {memory_key(entry.logit) for entry in entries if entry.learned_name}
        values = {memory_key(slot.param): self._float_value(slot) for slot in self._selection.rest}
        plain = {}
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{self._who}: {name} of the state_dict is no tensor and cannot be exported")
            key = memory_key(value)
            if name not in quantised and key not in logits:
                plain[name] = values.get(key, value).detach()
        return plain

    def _half(self, names: Mapping[int, list[str]]) -> set[str]:
        """The names, in the state_dict, of what is kept in half precision."""
        rest = self._selection.rest if self._float16 else []
        floating = [slot for slot in rest if slot.param.is_floating_point()]
        return {name for slot in floating for name in names.get(id(slot.param), [])}


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
