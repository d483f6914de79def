"""Sizes, stored states and packed files of a quantizer: what every quantizer exports, and how it is read back."""

from __future__ import annotations

import inspect
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from ..files.tensor_bytes import memory_key
from ..legacy import state as legacy_state
from ..legacy.pickler import pickled_size
from .selection import QuantizedParameter, Slot

BITS_PER_MB = 8 * 2**20
COMPRESSION_CHUNK = 2**20


class ExportedWeight(NamedTuple):
    """A quantised weight on its way to a packed file; ``aliases`` are the other names of the same tensor.

    Where the levels are not those of ``functional.quantize`` they are given, with their range, see
    :func:`diffq_fast.packed.tensor.pack_levels`.
    """

    name: str
    weight: Tensor
    widths: Tensor
    group_size: int
    range_scope: str
    aliases: list[str]
    levels: Tensor | None = None
    range: Tensor | None = None  # known beforehand, or, where levels are given, theirs
    level_count: int | None = None


class Export:
    """The exporting half of a quantizer. The other half, ``base.BaseQuantizer``, attaches and switches."""

    if TYPE_CHECKING:
        model: nn.Module
        float16: bool
        _qparams: list[QuantizedParameter]
        _rest: list[Slot]
        _init_kwargs: dict[str, Any]
        _saved: dict[Slot, tuple[Tensor, Tensor]] | None

        def _float_value(self, slot: Slot) -> Tensor: ...
        def unquantize(self) -> None: ...

    # -- for subclasses ------------------------------------------------------------------------------------------------

    def _quantized_bits(self, exact: bool) -> Tensor | float:
        """Bits that the quantised weights take."""
        raise TypeError(f"{type(self).__name__} cannot be used by itself")

    def _exported(self, entry: QuantizedParameter, found: Tensor, aliases: list[str]) -> ExportedWeight:
        """One weight of a packed file; ``found``: the range of all its elements, float32 ``[1, 2]``."""
        raise TypeError(f"{type(self).__name__} cannot be used by itself")

    def _encode(self, entry: QuantizedParameter, found: Tensor, packed: bool, torch_pack: bool) -> Any:
        """One entry of a stored state; ``found``: the range of all its elements, float32 ``[1, 2]``."""
        raise TypeError(f"{type(self).__name__} cannot be used by itself")

    def _decode(self, entry: QuantizedParameter, stored: Any, arguments: dict[str, Any]) -> tuple[Tensor, Any]:
        """The weight of one entry of a stored state, and what was learned for it. Changes nothing.

        ``arguments`` are those of the quantizer that wrote the state, as far as it says.
        """
        raise TypeError(f"{type(self).__name__} cannot be used by itself")

    def _set_learned(self, entry: QuantizedParameter, learned: Any) -> None:
        """Take over what :meth:`_decode` found to be learned."""

    def _tell_faults(self) -> None:
        """Warn of what was counted on the device since the last time."""

    def _storable(self, entry: QuantizedParameter) -> Tensor:
        """A weight as an export quantises it."""
        weight = self._float_value(entry)
        return weight.float() if weight.dtype == torch.float64 else weight

    # -- size ----------------------------------------------------------------------------------------------------------

    @property
    def _float16(self) -> list[nn.Parameter]:
        return [slot.param for slot in self._rest] if self.float16 else []

    @property
    def _others(self) -> list[nn.Parameter]:
        return [] if self.float16 else [slot.param for slot in self._rest]

    def model_size(self, exact: bool = False) -> Tensor:
        """Size of the compressed model in MB (2**20 bytes), as a 0-dim tensor on the weights' device.

        Differentiable in the logits, so it can be a penalty; asks the device for nothing. Unquantised parameters count
        16 bits per element with ``float16``, else 32; tied weights count once.

        Args:
            exact: with the whole numbers of bits that an export uses.
        """
        if not torch.compiler.is_compiling() and self._is_on_cpu():
            self._tell_faults()
        plain = sum(slot.param.numel() for slot in self._rest) * (16 if self.float16 else 32)
        total = self._quantized_bits(exact) + plain
        return total / BITS_PER_MB if isinstance(total, Tensor) else torch.tensor(total / BITS_PER_MB)

    def _is_on_cpu(self) -> bool:
        """Whether reading a value of the weights costs no wait for a device."""
        return all(slot.param.device.type == "cpu" for slot in self._qparams)

    def true_model_size(self) -> float:
        """``model_size(exact=True)`` as a float, in MB."""
        with torch.no_grad():
            self._tell_faults()
            return float(self.model_size(exact=True))

    def packed_model_size(self) -> float:
        """MB of the pickled packed state."""
        return pickled_size(self.get_quantized_state(packed=True)) / 2**20

    def compressed_model_size(self, compress_level: int = -1, num_workers: int = 8) -> float:
        """MB of the unpacked state, saved by torch and compressed by zlib in chunks of 1 MB.

        Args:
            compress_level: zlib's, -1 … 9.
            num_workers: threads that compress.
        """
        buffer = io.BytesIO()
        torch.save(self.get_quantized_state(packed=False), buffer)
        data = buffer.getbuffer()
        chunks = [data[start : start + COMPRESSION_CHUNK] for start in range(0, len(data), COMPRESSION_CHUNK)]
        with ThreadPoolExecutor(max(num_workers, 1)) as pool:
            return sum(pool.map(lambda chunk: len(zlib.compress(chunk, compress_level)), chunks)) / 2**20

    # -- diffq's stored states -----------------------------------------------------------------------------------------

    def get_quantized_state(self, packed: bool = True, torch_pack: bool = False) -> dict[str, Any]:
        """The quantised model as diffq stores it: ``quantized``, ``float16``, ``others``, ``meta``.

        Args:
            packed: pack the levels into bit planes.
            torch_pack: in the layout of ``diffq_fast.torch_pack`` instead of ``diffq_fast.bitpack``.

        Raises:
            ValueError: a weight has NaN or infinite elements, or a shape that this form cannot hold (a ragged last
                group, ranges per group); the packed file of :func:`diffq_fast.save` holds those.
        """
        self._tell_faults()
        entries = [entry for entry in self._qparams if entry.other is None]
        with torch.no_grad():
            ranges = self._ranges_of_sound(entries)
            quantized = [self._encode(entry, ranges[entry], packed, torch_pack) for entry in entries]
            rest = [self._float_value(slot) for slot in self._rest]
        arguments = self._legacy_arguments()
        meta = legacy_state.build_meta(arguments, type(self), packed=packed, torch_pack=torch_pack)
        half, full = (rest, []) if self.float16 else ([], rest)
        return legacy_state.build_state(quantized, float16=half, others=full, meta=meta)

    def _legacy_arguments(self) -> dict[str, Any]:
        """The caller's arguments, without those that diffq does not know (they are keyword-only)."""
        parameters = inspect.signature(type(self)).parameters
        return {
            name: value
            for name, value in self._init_kwargs.items()
            if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY
        }

    def restore_quantized_state(self, state: Any, quantized: Any = None) -> None:
        """Read a stored state into the model: weights, and what was learned for them.

        Args:
            state: from :meth:`get_quantized_state` or from diffq; or the model, see ``quantized``.
            quantized: demucs calls ``restore_quantized_state(model, state["quantized"])``: the bare list.

        Raises:
            ValueError: the state does not fit the model; nothing is changed then.
        """
        parsed = legacy_state.parse_state(state if quantized is None else quantized)
        names = [base.__name__ for base in type(self).__mro__]
        if parsed.quantizer is not None and parsed.quantizer not in names:
            raise ValueError(f"restore_quantized_state: the state is of a {parsed.quantizer}, this is a {names[0]}")
        entries = [entry for entry in self._qparams if entry.other is None]
        rest = parsed.float16 if self.float16 else parsed.others
        _check_count("quantised parameters", entries, parsed.quantized)
        bare = quantized is not None and not rest
        if not bare:
            _check_count("other parameters", self._rest, rest)
            for slot, value in zip(self._rest, rest, strict=True):
                _check_shape(slot, value)
        with torch.no_grad():
            arguments = self._defaults() | parsed.init_kwargs if parsed.meta else {}
            pairs = zip(entries, parsed.quantized, strict=True)
            decoded = [self._decode(entry, stored, arguments) for entry, stored in pairs]
            self.unquantize()
            for entry, (weight, learned) in zip(entries, decoded, strict=True):
                entry.param.copy_(weight)
                self._set_learned(entry, learned)
            if not bare:
                for slot, value in zip(self._rest, rest, strict=True):
                    slot.param.copy_(value)

    def _defaults(self) -> dict[str, Any]:
        """The arguments that may be left out, and what they are then."""
        parameters = inspect.signature(type(self)).parameters.values()
        return {each.name: each.default for each in parameters if each.default is not each.empty}

    def _ranges_of_sound(self, entries: Sequence[QuantizedParameter]) -> dict[QuantizedParameter, Tensor]:
        """The range of each whole weight, float32 ``[1, 2]``; raises ValueError where something cannot be exported."""
        who, ranges = type(self).__name__, {}
        for entry in entries:  # a NaN or an infinity shows in the range, which is cheaper than a mask of the elements
            found = ranges[entry] = functional.weight_range([self._float_value(entry)], group_size=0)
            if not bool(found.isfinite().all()):
                raise ValueError(f"{who}: {entry.full_name} has NaN or infinite elements and cannot be exported")
        for slot in self._rest if self.float16 else ():
            value = self._float_value(slot)
            if value.is_floating_point() and bool((value.isfinite() & ~value.half().isfinite()).any()):
                raise ValueError(
                    f"{who}: {slot.full_name} has elements beyond 65,504, the largest of half precision (float16=True)"
                )
        return ranges

    # -- the packed file -----------------------------------------------------------------------------------------------

    def export_weights(self) -> list[ExportedWeight]:
        """The weights, how they are quantised, and their other names, for :func:`diffq_fast.save`.

        Raises:
            ValueError: a weight has NaN or infinite elements.
        """
        self._tell_faults()
        entries = [entry for entry in self._qparams if entry.other is None]
        with torch.no_grad():
            ranges = self._ranges_of_sound(entries)
            names = self._aliases()
            own = {entry: self._stored_name(entry, names) for entry in entries}
            return [
                self._exported(
                    entry, ranges[entry], [name for name in names[id(entry.param)] if name not in own.values()]
                )._replace(name=own[entry])
                for entry in entries
            ]

    def _stored_name(self, entry: QuantizedParameter, names: dict[int, list[str]]) -> str:
        """What the state_dict calls the weight: its full name, unless the model gives another."""
        found = names.get(id(entry.param), [])
        if not found:
            raise ValueError(
                f"{type(self).__name__}: {entry.full_name} is quantised, but the model's state_dict makes other values "
                "of it; exclude it"
            )
        return next((name for name in found if name.endswith(entry.full_name)), found[0])

    def plain_state(self, logits: bool = False) -> dict[str, Tensor]:
        """Every entry of the model's ``state_dict`` that is not a quantised weight, with its training value.

        Args:
            logits: with what was learned too, so that training can go on from a file.
        """
        names = self._aliases()
        quantized = {name for entry in self._qparams for name in names.get(id(entry.param), [])}
        learned = {memory_key(entry.logit) for entry in self._qparams if entry.learned_name}
        values = {memory_key(slot.param): self._float_value(slot) for slot in self._rest}
        state = {}
        for name, value in self.model.state_dict(keep_vars=True).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{type(self).__name__}: {name} of the state_dict is no tensor and cannot be exported")
            if name not in quantized and (logits or memory_key(value) not in learned):
                state[name] = values.get(memory_key(value), value).detach()
        return state

    @property
    def half_names(self) -> set[str]:
        """Names that an export keeps in half precision."""
        return {slot.full_name for slot in self._rest if slot.param.is_floating_point()} if self.float16 else set()

    def describe(self) -> dict[str, Any]:
        """Class and arguments, as a packed file's header holds them."""
        return {"class": type(self).__name__, "arguments": _json_value(self._init_kwargs)}

    def stored_names(self) -> dict[str, str]:
        """Names of the parameters in the state_dict, where they are others than ``"<module name>.<name>"``."""
        names = self._aliases()
        found = {slot.full_name: names.get(id(slot.param), []) for slot in self._rest}
        return {name: others[0] for name, others in found.items() if others and name not in others}

    def _aliases(self) -> dict[int, list[str]]:
        """All names of each parameter in ``state_dict``, buffers over the same memory too, by the parameter's id."""
        state = self.model.state_dict(keep_vars=True)
        names: dict[Any, list[str]] = {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                names.setdefault(memory_key(value), []).append(name)
        aliases = {id(slot.param): names.get(memory_key(slot.param), []) for slot in (*self._qparams, *self._rest)}
        for slot in self._qparams:
            copy = state.get(slot.full_name)
            if not aliases[id(slot.param)] and isinstance(copy, Tensor) and torch.equal(copy, slot.param):
                aliases[id(slot.param)] = [slot.full_name]
        return aliases


def _json_value(value: Any) -> Any:
    """The same as values of JSON: numbers of numpy and torch as Python's, sets as sorted lists, all else as text."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_json_value(each) for each in value)
    if isinstance(value, list | tuple):
        return [_json_value(each) for each in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if hasattr(value, "item") and getattr(value, "shape", None) in ((), (1,)):
        return _json_value(value.item())
    return str(value)


def _check_count(what: str, slots: Sequence[Slot], stored: Sequence[Any]) -> None:
    if len(slots) != len(stored):
        raise ValueError(
            f"restore_quantized_state: the model has {len(slots)} {what}, the state {len(stored)}; "
            "was it made for another model, or with other arguments of the quantizer?"
        )


def _check_shape(slot: Slot, value: Tensor) -> None:
    if slot.param.shape != value.shape:
        raise ValueError(
            f"restore_quantized_state: {slot.full_name} has shape {list(slot.param.shape)}, "
            f"the state has {list(value.shape)} at its place"
        )


def refuse_other_bits(quantizer: Export, bits: float, stored: float) -> None:
    """A state made at other bits would be quantised once more by the next eval."""
    if bits != stored:
        raise ValueError(
            f"restore_quantized_state: the state was made with bits={stored}, this {type(quantizer).__name__} has "
            f"bits={bits}; make it with bits={stored}"
        )
