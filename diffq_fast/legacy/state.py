"""diffq's stored states, read and written: ``torch.save(state)``, and three ways in which Demucs wraps one.

    (a) diffq        {quantized: [entry, …], float16: [tensor, …], others: [tensor, …],
                      meta: {init_kwargs, klass, packed, torch_pack}}
    (b) Demucs v2    {compressed: zlib(torch.save(state without meta, widths [groups, 1]))}
    (c) Demucs v3/4  {klass, args, kwargs, state, training_args}, the state with an extra key __quantized
    (d) Demucs 4.1   a safetensors file with metadata klass, args, kwargs, structure

Position ties an entry to a parameter, not a name, so this module knows neither modules nor parameters; the
quantizers do. The entries themselves are :mod:`diffq_fast.legacy.entries`'. Nothing here imports or runs what
a file names (:mod:`diffq_fast.legacy.unpickler`).
"""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..files.budget import Budget
from ..files.safetensors_reader import open_file
from .demucs_file import is_safetensors, read_safetensors
from .entries import width_base
from .fields import describe
from .torch_file import read_torch_file
from .unpickler import legacy_name


@dataclass
class LegacyState:
    """A state whose outer form has been checked; its entries are checked as they are decoded.

    quantized: entries in selection order; float16, others: tensors; meta: None for older states, else
    init_kwargs, klass (a dotted name), packed, torch_pack; packed, torch_pack: from meta, else from the
    entries' form, and None where that does not tell (decode such entries with ``packed=None``).
    """

    quantized: list[tuple]
    float16: list[Tensor] = field(default_factory=list)
    others: list[Tensor] = field(default_factory=list)
    meta: dict[str, Any] | None = None
    packed: bool | None = None
    torch_pack: bool | None = None

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """Arguments of the quantizer that wrote the state; empty without meta."""
        return dict(self.meta["init_kwargs"]) if self.meta else {}

    @property
    def klass(self) -> str | None:
        """The dotted name of the quantizer that wrote the state; None without meta."""
        return self.meta["klass"] if self.meta else None


@dataclass
class LegacyPackage:
    """A Demucs package: how to build the model, and its state, a plain dict where it is not quantised.

    klass is a dotted name and is not imported; objects of unknown classes in the rest are inert.
    """

    klass: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    state: LegacyState | dict[str, Any]
    training_args: Any = None


def build_meta(init_kwargs: Mapping[str, Any], klass: object, *, packed: bool, torch_pack: bool) -> dict[str, Any]:
    """``state["meta"]``: the quantizer's class and arguments, and the form of the entries."""
    return {"init_kwargs": dict(init_kwargs), "klass": klass, "packed": packed, "torch_pack": packed and torch_pack}


def readable_diffq_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a DiffQuantizer as the ``meta`` of a packed state has them.

    diffq adds ``min_bits`` to the packed widths, and finds no group of a fractional width: a fractional one is written
    as what the widths count from. A packed state with ``group_size=0`` cannot be read by diffq at all. Both are warned
    about.
    """
    readable = dict(arguments)
    written = readable.get("min_bits", 2)
    if isinstance(written, float) or written < 1:
        readable["min_bits"] = width_base(written)
    if readable.get("min_bits", 2) != written:
        warnings.warn(
            f"legacy state: min_bits={written} is written as {readable['min_bits']}, so that diffq can "
            "read the widths; packed=False or the native format keep it",
            stacklevel=4,
        )
    if readable.get("group_size", 1) == 0:
        warnings.warn(
            "legacy state: diffq 0.2.4 cannot read a packed state with group_size=0 (diffq_fast can); "
            "packed=False writes one that it reads",
            stacklevel=4,
        )
    return readable


def build_state(
    entries: Sequence[tuple],
    float16: Sequence[Tensor] = (),
    others: Sequence[Tensor] = (),
    meta: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The state of form (a): entries as they are, the tensors as float16 and float32 copies on the CPU."""
    state: dict[str, Any] = {
        "quantized": list(entries),
        "float16": [tensor.detach().to("cpu", torch.float16, copy=True).contiguous() for tensor in float16],
        "others": [tensor.detach().to("cpu", torch.float32, copy=True).contiguous() for tensor in others],
    }
    if meta is not None:
        state["meta"] = dict(meta)
    return state


def parse_state(state: Any) -> LegacyState:
    """The state, or a bare list of entries, as a :class:`LegacyState`; other keys are ignored.

    Raises ValueError, saying what was expected, when it is neither.
    """
    if isinstance(state, LegacyState):
        return state
    if isinstance(state, list | tuple):
        state = {"quantized": state}
    if not isinstance(state, Mapping) or "quantized" not in state:
        raise ValueError(f"legacy state: expected a dict with the key 'quantized' or a list, found {_summary(state)}")
    entries = list(_items(state, "quantized", tuple))
    float16, others = (list(_items(state, key, Tensor)) for key in ("float16", "others"))
    meta = state.get("meta")
    if meta is None:
        packed, torch_pack = _detect_form(entries)
        return LegacyState(entries, float16, others, packed=packed, torch_pack=torch_pack)
    if not isinstance(meta, Mapping) or not {"init_kwargs", "klass"} <= meta.keys():
        raise ValueError(f"legacy state: meta: expected a dict with init_kwargs and klass, found {_summary(meta)}")
    packed, torch_pack = _flag(meta, "packed"), _flag(meta, "torch_pack")
    if not isinstance(meta["init_kwargs"], Mapping):
        raise ValueError(
            f"legacy state: meta: expected init_kwargs to be a dict, found {_summary(meta['init_kwargs'])}"
        )
    known = {"init_kwargs": dict(meta["init_kwargs"]), "klass": legacy_name(meta["klass"])}
    return LegacyState(
        entries,
        float16,
        others,
        meta={**known, "packed": packed, "torch_pack": torch_pack},
        packed=packed,
        torch_pack=torch_pack,
    )


def _flag(meta: Mapping, key: str) -> bool:
    value = meta.get(key, False)
    if not isinstance(value, bool | int):
        raise ValueError(f"legacy state: meta: expected {key} to be true or false, found {describe(value)}")
    return bool(value)


def _items(state: Mapping, key: str, expected: type) -> Sequence[Any]:
    items = state.get(key, [])
    if not isinstance(items, list | tuple):
        raise ValueError(f"legacy state: {key}: expected a list, found {describe(items)}")
    for index, item in enumerate(items):
        if not isinstance(item, expected) and not (expected is tuple and isinstance(item, list)):
            raise ValueError(f"legacy state: {key}[{index}]: expected a {expected.__name__}, found {describe(item)}")
    return items


def _detect_form(entries: Sequence[Any]) -> tuple[bool | None, bool | None]:
    """(packed, torch_pack) from the entries' form, None where it does not tell."""
    for entry in entries:
        levels = entry[0] if entry else None
        if isinstance(levels, list | tuple):
            planes = next((part for part in (*levels, entry[-1]) if isinstance(part, Tensor)), None)
            return True, planes is not None and planes.dim() == 2
        if len(entry) == 3:
            return False, False
        if isinstance(levels, Tensor) and levels.dtype == torch.int64:
            return True, False
    return None, None


def load_legacy(
    source: str | os.PathLike[str] | BinaryIO, *, max_bytes: int | None = None
) -> LegacyState | LegacyPackage:
    """What a file of diffq or Demucs holds, any of (a) to (d), without running or importing what it names.

    Args:
        source: a path, or a binary file that can seek.
        max_bytes: how large a compressed state (b) may become; ten times the file, and 64 MiB, when left out.

    Returns:
        :class:`LegacyState` for (a) and (b), :class:`LegacyPackage` for (c) and (d).

    Raises:
        ValueError: naming the file, when it is none of them, damaged, truncated or hostile.
    """
    if isinstance(source, str | os.PathLike):
        with io.BufferedReader(open_file(source)) as file:  # type: ignore[type-var]
            return _load_file(file, os.fspath(source), max_bytes)
    return _load_file(source, str(getattr(source, "name", "file")), max_bytes)


def _load_file(file: BinaryIO, name: str, max_bytes: int | None) -> LegacyState | LegacyPackage:
    if is_safetensors(file):
        return _parse_package(read_safetensors(file, name), name)
    value = read_torch_file(file, name)
    if isinstance(value, Mapping) and isinstance(value.get("compressed"), bytes):
        budget = Budget(name, file.seek(0, io.SEEK_END), max_bytes)
        value = read_torch_file(io.BytesIO(_decompress(value["compressed"], budget)), name)
    if isinstance(value, Mapping) and "klass" in value and "state" in value:
        return _parse_package(value, name)
    return _parse_in_file(value, name)


def _parse_in_file(state: Any, name: str) -> LegacyState:
    try:
        return parse_state(state)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _parse_package(fields: Mapping[str, Any], name: str) -> LegacyPackage:
    state = fields["state"]
    if not isinstance(state, Mapping) or not isinstance(fields.get("kwargs", {}), Mapping):
        raise ValueError(f"{name}: expected a package with a dict as state and as kwargs, found {_summary(state)}")
    quantised = isinstance(state.get("quantized"), list | tuple)
    return LegacyPackage(
        klass=legacy_name(fields["klass"]),
        args=fields.get("args", ()),
        kwargs=dict(fields.get("kwargs", {})),
        state=_parse_in_file(state, name) if quantised else dict(state),
        training_args=fields.get("training_args"),
    )


def _decompress(data: bytes, budget: Budget) -> bytes:
    decompressor, name = zlib.decompressobj(), budget.path
    try:
        plain = decompressor.decompress(data, budget.limit + 1)
    except zlib.error as error:
        raise ValueError(f"{name}: its compressed state is damaged ({error})") from error
    budget.take(len(plain), "its compressed state")
    if not decompressor.eof:
        raise ValueError(f"{name}: its compressed state ends early; the file is truncated")
    return plain


def _summary(value: object) -> str:
    """The keys of a dict, or the type."""
    if isinstance(value, Mapping):
        return f"a dict with the keys {[key for key in value if isinstance(key, str)]}"[:200]
    return describe(value)
