"""Write and read a packed file: packed weights, plain tensors and what ties them to a model's state dict."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import functional
from ..files.safetensors_reader import Progress, file_error, open_file, read_tensors
from ..files.safetensors_writer import TensorSource, safetensors_bytes, write_safetensors
from ..files.tensor_bytes import DTYPE_NAMES, DTYPES, dtype_name, tensor_bytes, tensors_from_bytes
from ..quantizers.stored_input import StoredInput
from ..reference.level_code import CodeError
from .activations import KEY, activation_fields
from .coding import CodedTensor
from .header import CODED_VERSION, VERSION, packed_metadata, seal
from .layout import (
    CODED_PARTS,
    PARTS,
    STEPS,
    PackedLayout,
    WeightLayout,
    layout_fields,
    name_conflict,
    needs_version_2,
    read_layout,
)
from .ranges import ShortRanges, short_ranges_from_data
from .tensor import PackedTensor
from .widths import encode_widths


class Entry(NamedTuple):
    """An entry of a state dict: the name under which the file has it, and what the model has there."""

    stored_name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class PackedContents:
    """What a packed file holds, in memory.

    packed: name -> weight. plain: name -> tensor of the dtype that the model has, or, in `half`, of float16.
    ties: alias -> name in packed or plain. half: name in plain of a tensor stored in float16 -> its dtype in the model.
    buffers: which plain tensors are buffers (for the report).
    quantizer: {"class": name, "arguments": JSON values}.
    activations: how inputs of layers are rounded, by the name of the layer.
    path: of the file that it was read from.
    """

    packed: Mapping[str, PackedTensor | CodedTensor]
    plain: Mapping[str, Tensor]
    ties: Mapping[str, str] = field(default_factory=dict)
    half: Mapping[str, torch.dtype] = field(default_factory=dict)
    buffers: Collection[str] = frozenset()
    quantizer: Mapping[str, Any] = field(default_factory=lambda: {"class": "none", "arguments": {}})
    path: str = ""
    activations: Mapping[str, StoredInput] = field(default_factory=dict)

    def entries(self) -> dict[str, Entry]:
        """Every entry of the state dict by name, tied names included."""
        entries = {name: Entry(name, tuple(weight.shape), weight.dtype) for name, weight in self.packed.items()}
        for name, tensor in self.plain.items():
            entries[name] = Entry(name, tuple(tensor.shape), self.half.get(name, tensor.dtype))
        return entries | {alias: entries[name] for alias, name in self.ties.items()}

    def tensor(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """One entry of the state dict: a weight is unpacked and dequantised, on `device`."""
        name = self.ties.get(name, name)
        weight = self.packed.get(name)
        if isinstance(weight, CodedTensor):  # on the CPU, which is where streams are decoded fast
            return self._decoded(name, weight).to(device)
        if weight is not None:
            return weight.to(device).unpack()
        return self.plain[name].to(device=device, dtype=self.half.get(name, self.plain[name].dtype))

    def _decoded(self, name: str, weight: CodedTensor) -> Tensor:
        with self.naming(name):
            return weight.unpack()

    @contextmanager
    def naming(self, name: str) -> Iterator[None]:
        """A coded weight is decoded inside: damage is told as that of this file and weight."""
        try:
            yield
        except CodeError as error:
            raise file_error(self.path, name + ".coded", f"{error}; the file is damaged") from None

    def tensors(self, devices: Mapping[str, torch.device]) -> dict[str, Tensor]:
        """Entries of the state dict, each on its device; tied names on one device share one tensor."""
        made: dict[tuple[str, torch.device], Tensor] = {}
        tensors = {}
        for name, device in devices.items():
            source = self.ties.get(name, name), device
            if source not in made:
                made[source] = self.tensor(*source)
            tensors[name] = made[source]
        return tensors

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, under every name; tied names share one tensor."""
        names = [*self.packed, *self.plain, *self.ties]
        return self.tensors(dict.fromkeys(names, torch.device("cpu")))


def write_packed(path: str | os.PathLike[str], contents: PackedContents, progress: Progress | None = None) -> None:
    """Write a packed file, all or nothing.

    Args:
        contents: what it is to hold; its own `path` does not matter.
        progress: called as progress(tensor name, bytes done, bytes in all).

    Raises:
        ValueError: names that collide, ranges that are not finite, or a half tensor beyond float16's range. TypeError:
            not storable.
    """
    sources, metadata = _prepared(contents)
    write_safetensors(path, sources, metadata, seal, progress)


def packed_bytes(contents: PackedContents) -> int:
    """Bytes of the file that :func:`write_packed` would write. Raises like it."""
    return safetensors_bytes(*_prepared(contents))


def read_packed(
    path: str | os.PathLike[str], progress: Progress | None = None, *, names: Collection[str] | None = None
) -> PackedContents:
    """Read a packed file into memory. Every size, width, checksum and range is verified before anything is decoded.

    Args:
        progress: called as progress(tensor name, bytes done, bytes in all).
        names: names, or fnmatch patterns, of the entries to read; all of them when left out. What they are tied to is
            read too. Of the others only sizes and widths are looked at: their levels are neither read nor summed.

    Raises:
        PackedFileError: naming the file and the tensor. OSError: the file cannot be read.
        ValueError: one of the names matches no entry.
    """
    path = os.fspath(path)
    with open_file(path) as file:
        layout = read_layout(file, path)
        chosen = {*layout.weights, *layout.plain, *layout.ties}
        if names is not None:
            chosen = matching(chosen, names, path)
        chosen |= {layout.ties[name] for name in chosen & layout.ties.keys()}
        wanted = {name + part for name in chosen & layout.weights.keys() for part in layout.parts} | chosen
        read = read_tensors(file, layout.header, layout.checksums, progress, wanted)
        stored = tensors_from_bytes(layout.header, read)
    return PackedContents(
        packed={name: _packed_tensor(layout, name, stored) for name in layout.weights if name in chosen},
        plain={name: stored[name] for name in layout.plain if name in chosen},
        ties={alias: name for alias, name in layout.ties.items() if alias in chosen},
        half={name: DTYPES[dtype] for name, dtype in layout.half.items() if name in chosen},
        buffers=layout.buffers & chosen,
        quantizer=layout.quantizer,
        path=path,
        activations=layout.activations,
    )


def matching(entries: Collection[str], names: Collection[str], path: str) -> set[str]:
    """The entries that a name or pattern means; ValueError where one means none."""
    chosen = set()
    for pattern in [names] if isinstance(names, str) else names:
        found = {name for name in entries if name == pattern or fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(f"{path}: no entry of the file matches {pattern!r}; `diffq-fast inspect` lists them")
        chosen |= found
    return chosen


def _prepared(contents: PackedContents) -> tuple[list[TensorSource], dict[str, str]]:
    """The tensors of the file and its metadata, without checksums."""
    packed, plain, ties = contents.packed, contents.plain, contents.ties
    lost = [name for name in ties.values() if name not in packed and name not in plain]
    sources, half = _plain_sources(contents)
    layouts = []
    for name, weight in packed.items():
        expected = _unsound_ranges(weight.ranges, weight.range_scope)
        if expected is not None:
            raise ValueError(f"save: {name}: expected {expected}, found others, which no reader takes")
        coding, table = encode_widths(weight.widths.cpu().numpy(), _pack_stream)
        layouts.append(_weight_layout(name, weight, coding))
        sources += _weight_sources(name, weight, table)
    second = any(map(needs_version_2, layouts))
    problem = name_conflict(packed, plain, ties, CODED_PARTS if second else PARTS)
    if problem or lost:
        raise ValueError(f"save: {problem or f'a tied name points to {lost[0]!r}, which is not saved'}; rename one")
    layout = layout_fields(layouts, ties, half, contents.buffers)
    version = CODED_VERSION if second else VERSION
    further = {KEY: activation_fields(contents.activations)} if contents.activations else {}
    return sources, packed_metadata(contents.quantizer, layout, len(sources), version, further)


def _plain_sources(contents: PackedContents) -> tuple[list[TensorSource], dict[str, str]]:
    """The plain tensors as they are written; and, for those in half precision, the file's names of their dtypes."""
    sources, half = [], {}
    for name, tensor in contents.plain.items():
        dtype = dtype_name(tensor, "save", name)
        if contents.half.get(name, torch.float16) != torch.float16:
            _check_half(name, tensor)
            half[name], dtype = DTYPE_NAMES[contents.half[name]], "F16"
        sources.append(TensorSource(name, dtype, tuple(tensor.shape), partial(tensor_bytes, tensor, DTYPES[dtype])))
    return sources, half


def _check_half(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"save: {name}: only floating tensors can be stored in float16, got {tensor.dtype}")
    finite = torch.isfinite(tensor)
    if not bool((torch.isfinite(tensor.to(torch.float16)) == finite).all()):
        largest = tensor[finite].abs().max().item()
        problem = f"its largest element {largest:g} is beyond float16's 65504"
        raise ValueError(f"save: {name}: {problem}; use float16=False or exclude it")


def _pack_stream(values: np.ndarray, bits: int) -> bytes:
    """A table of widths is one stream of levels, so the operator that packs levels packs it."""
    width = torch.tensor([bits], dtype=torch.uint8, device="cpu")
    return tensor_bytes(functional.pack(torch.from_numpy(values).to(torch.int32), width, group_size=0)).tobytes()


def _weight_layout(name: str, weight: PackedTensor | CodedTensor, coding: list[Any]) -> WeightLayout:
    return WeightLayout(
        name,
        shape=tuple(weight.shape),
        dtype=DTYPE_NAMES[weight.dtype],
        group_size=weight.group_size,
        groups=len(weight.widths),
        range_scope=weight.range_scope,
        coding=coding,
        level_count=weight.level_count,
        coded=isinstance(weight, CodedTensor),
        groups_per_unit=weight.short and weight.short.groups_per_unit,
    )


def _weight_sources(name: str, weight: PackedTensor | CodedTensor, table: bytes) -> list[TensorSource]:
    """The tensors of one weight; `table`: its coded widths, empty where all groups have one width."""
    sources = []
    if weight.short is not None:
        data = weight.short.data()
        sources.append(TensorSource(name + ".range", "U8", (len(data),), partial(tensor_bytes, data)))
    elif weight.range_scope != STEPS:
        ranges = partial(tensor_bytes, weight.ranges)
        sources.append(TensorSource(name + ".range", "F32", tuple(weight.ranges.shape), ranges))
    if isinstance(weight, CodedTensor):
        sources.append(TensorSource(name + ".coded", "U16", (len(weight.coded),), partial(tensor_bytes, weight.coded)))
    else:
        sources.append(TensorSource(name + ".words", "U32", (len(weight.words),), partial(tensor_bytes, weight.words)))
    if table:
        coded = partial(np.frombuffer, table, dtype=np.uint8)
        sources.append(TensorSource(name + ".widths", "U8", (len(table),), coded))
    return sources


def _packed_tensor(layout: PackedLayout, name: str, stored: Mapping[str, Tensor]) -> PackedTensor | CodedTensor:
    weight = layout.weights[name]
    ranges, short = _ranges(layout, weight, stored)
    widths, dtype = _widths_tensor(layout.widths[name]), DTYPES[weight.dtype]
    scheme = weight.group_size, weight.range_scope, weight.level_count, short
    if not weight.coded:
        return PackedTensor(stored[name + ".words"].view(torch.int32), widths, ranges, weight.shape, dtype, *scheme)
    coded = CodedTensor(stored[name + ".coded"].view(torch.int16), widths, ranges, weight.shape, dtype, *scheme)
    try:
        coded.check()
    except CodeError as error:
        raise file_error(layout.header.path, name + ".coded", f"{error}; the file is damaged") from None
    return coded


def _widths_tensor(widths: np.ndarray) -> Tensor:
    """The same memory as a tensor; one width for all stays one byte."""
    one_for_all = widths.strides == (0,)
    return torch.from_numpy(widths[:1].copy()).expand(len(widths)) if one_for_all else torch.from_numpy(widths)


def _ranges(
    layout: PackedLayout, weight: WeightLayout, stored: Mapping[str, Tensor]
) -> tuple[Tensor, ShortRanges | None]:
    """A weight's ranges, verified, and how the file keeps them if they are short."""
    name, short = weight.name + ".range", None
    ranges = stored.get(name, torch.empty(0, dtype=torch.float32, device="cpu"))
    if weight.groups_per_unit is not None:
        try:
            short = short_ranges_from_data(ranges, weight.groups, weight.groups_per_unit)
        except ValueError as error:
            raise file_error(layout.header.path, name, f"{error}; damaged or hostile") from None
        ranges = short.ranges()
    expected = _unsound_ranges(ranges, weight.range_scope)
    if expected is not None:
        raise file_error(layout.header.path, name, f"expected {expected}; damaged or hostile")
    return ranges, short


def _unsound_ranges(ranges: Tensor, range_scope: str) -> str | None:
    """What a file's ranges have to be and these are not; None where they are. ``ranges``: `[..., 2]`, or scales."""
    if range_scope == STEPS:
        return None
    if range_scope == "scale":
        return None if bool(torch.isfinite(ranges).all()) else "a finite scale"
    length = ranges[..., 1] - ranges[..., 0]
    if bool((torch.isfinite(length) & (length >= 0)).all()):
        return None
    return "ranges lo <= hi, finite and no further apart than float32 can hold"
