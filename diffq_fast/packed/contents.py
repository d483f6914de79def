"""Write and read a packed file: packed weights, plain tensors and what ties them to a model's state dict."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import functional
from ..files.safetensors_reader import Progress, file_error, open_file, read_tensors
from ..files.safetensors_writer import TensorSource, safetensors_bytes, write_safetensors
from ..files.tensor_bytes import DTYPE_NAMES, DTYPES, dtype_name, tensor_bytes, tensors_from_bytes
from ..reference.level_code import CodeError
from .coding import CodedTensor
from .header import CODED_VERSION, VERSION, packed_metadata, seal
from .layout import CODED_PARTS, PARTS, STEPS, PackedLayout, WeightLayout, layout_fields, name_conflict, read_layout
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
    path: of the file that it was read from.
    """

    packed: Mapping[str, PackedTensor | CodedTensor]
    plain: Mapping[str, Tensor]
    ties: Mapping[str, str] = field(default_factory=dict)
    half: Mapping[str, torch.dtype] = field(default_factory=dict)
    buffers: Collection[str] = frozenset()
    quantizer: Mapping[str, Any] = field(default_factory=lambda: {"class": "none", "arguments": {}})
    path: str = ""

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
        ValueError: names that collide, or a half tensor beyond float16's range. TypeError: not storable.
    """
    sources, metadata = _prepared(contents)
    write_safetensors(path, sources, metadata, seal, progress)


def packed_bytes(contents: PackedContents) -> int:
    """Bytes of the file that :func:`write_packed` would write. Raises like it."""
    return safetensors_bytes(*_prepared(contents))


def read_packed(path: str | os.PathLike[str], progress: Progress | None = None) -> PackedContents:
    """Read a packed file into memory. Every size, width, checksum and range is verified before anything is decoded.

    Raises:
        PackedFileError: naming the file and the tensor. OSError: the file cannot be read.
    """
    path = os.fspath(path)
    with open_file(path) as file:
        layout = read_layout(file, path)
        stored = tensors_from_bytes(layout.header, read_tensors(file, layout.header, layout.checksums, progress))
    return PackedContents(
        packed={name: _packed_tensor(layout, name, stored) for name in layout.weights},
        plain={name: stored[name] for name in layout.plain},
        ties=layout.ties,
        half={name: DTYPES[dtype] for name, dtype in layout.half.items()},
        buffers=layout.buffers,
        quantizer=layout.quantizer,
        path=path,
    )


def _prepared(contents: PackedContents) -> tuple[list[TensorSource], dict[str, str]]:
    """The tensors of the file and its metadata, without checksums."""
    packed, plain, ties = contents.packed, contents.plain, contents.ties
    lost = [name for name in ties.values() if name not in packed and name not in plain]
    sources, half = _plain_sources(contents)
    layouts = []
    for name, weight in packed.items():
        coding, table = encode_widths(weight.widths.cpu().numpy(), _pack_stream)
        layouts.append(_weight_layout(name, weight, coding))
        sources += _weight_sources(name, weight, table)
    coded = any(layout.coded for layout in layouts)
    problem = name_conflict(packed, plain, ties, CODED_PARTS if coded else PARTS)
    if problem or lost:
        raise ValueError(f"save: {problem or f'a tied name points to {lost[0]!r}, which is not saved'}; rename one")
    layout = layout_fields(layouts, ties, half, contents.buffers)
    version = CODED_VERSION if coded else VERSION
    return sources, packed_metadata(contents.quantizer, layout, len(sources), version)


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
    )


def _weight_sources(name: str, weight: PackedTensor | CodedTensor, table: bytes) -> list[TensorSource]:
    """The tensors of one weight; `table`: its coded widths, empty where all groups have one width."""
    sources = []
    if weight.range_scope != STEPS:
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
    ranges = stored.get(name + ".range", torch.empty(0, dtype=torch.float32, device="cpu"))
    if weight.range_scope == STEPS:
        sound, expected = ranges, ""
    elif weight.range_scope == "scale":
        sound, expected = torch.isfinite(ranges), "a finite scale"
    else:
        length = ranges[..., 1] - ranges[..., 0]
        sound = torch.isfinite(length) & (length >= 0)
        expected = "ranges lo <= hi, finite and no further apart than float32 can hold"
    if not bool(sound.all()):
        raise file_error(layout.header.path, name + ".range", f"expected {expected}; damaged or hostile")
    widths, dtype = torch.from_numpy(layout.widths[name]), DTYPES[weight.dtype]
    scheme = weight.group_size, weight.range_scope, weight.level_count
    if not weight.coded:
        return PackedTensor(stored[name + ".words"].view(torch.int32), widths, ranges, weight.shape, dtype, *scheme)
    coded = CodedTensor(stored[name + ".coded"].view(torch.int16), widths, ranges, weight.shape, dtype, *scheme)
    try:
        coded.check()
    except CodeError as error:
        raise file_error(layout.header.path, name + ".coded", f"{error}; the file is damaged") from None
    return coded
