"""Write and read a packed file: packed weights, plain tensors and what ties them to a model's state dict."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .. import functional
from ..files.safetensors_reader import FORMAT, NO_CHECKSUM, VERSION, file_error, open_file, read_bytes
from ..files.safetensors_writer import Progress, TensorSource, write_safetensors
from ..files.tensor_bytes import DTYPE_NAMES, DTYPES, dtype_name, tensor_bytes, tensor_from_bytes
from .layout import PackedLayout, WeightLayout, compact_json, layout_text, name_conflict, read_layout
from .tensor import PackedTensor
from .widths import encode_widths


@dataclass(frozen=True)
class PackedContents:
    """A packed file in memory, fully verified.

    packed: name -> weight. plain: name -> tensor as stored (half ones still float16).
    ties: alias -> stored name. half: name -> dtype that a tensor stored in float16 has in the model.
    buffers: which plain tensors are buffers.
    quantizer: {"class": name, "arguments": {…}}.
    """

    path: str
    packed: dict[str, PackedTensor]
    plain: dict[str, Tensor]
    ties: dict[str, str]
    half: dict[str, torch.dtype]
    buffers: frozenset[str]
    quantizer: dict[str, Any]

    def names(self) -> list[str]:
        """Every name of the state dict, tied names included."""
        return [*self.packed, *self.plain, *self.ties]

    def __contains__(self, name: object) -> bool:
        return name in self.packed or name in self.plain or name in self.ties

    def shape(self, name: str) -> tuple[int, ...]:
        name = self.ties.get(name, name)
        return self.packed[name].shape if name in self.packed else tuple(self.plain[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of :meth:`tensor`: what the model had."""
        name = self.ties.get(name, name)
        return self.packed[name].dtype if name in self.packed else self.half.get(name, self.plain[name].dtype)

    def tensor(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """One entry of the state dict: a weight is unpacked and dequantised, on `device`."""
        name = self.ties.get(name, name)
        if name in self.packed:
            return self.packed[name].to(device).unpack()
        return self.plain[name].to(device=device, dtype=self.dtype(name))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, under every name; tied names share one tensor."""
        state = {name: self.tensor(name) for name in [*self.packed, *self.plain]}
        return state | {alias: state[name] for alias, name in self.ties.items()}


def write_packed(
    path: str | os.PathLike[str],
    packed: Mapping[str, PackedTensor],
    plain: Mapping[str, Tensor],
    ties: Mapping[str, str] | None = None,
    half: Collection[str] = (),
    quantizer_info: Mapping[str, Any] | None = None,
    *,
    buffers: Collection[str] = (),
    progress: Progress | None = None,
) -> None:
    """Write a packed file, all or nothing.

    Args:
        packed, plain: the state dict's entries by name; plain ones keep their dtype.
        ties: alias -> name in packed or plain.
        half: names in plain that are stored as float16 and come back in their own dtype.
        quantizer_info: {"class": name, "arguments": JSON values}.
        buffers: names in plain that are buffers (for the report).
        progress: called as progress(tensor name, bytes done, bytes in all).

    Raises:
        ValueError: names that collide, or a half tensor beyond float16's range. TypeError: not storable.
    """
    ties = dict(ties or {})
    problem = name_conflict(packed, plain, ties)
    lost = [name for name in ties.values() if name not in packed and name not in plain]
    if problem or lost:
        raise ValueError(f"save: {problem or f'a tied name points to {lost[0]!r}, which is not saved'}; rename one")
    layouts, sources = [], []
    for name, weight in packed.items():
        layout, parts = _weight_sources(name, weight)
        layouts.append(layout)
        sources += parts
    half_dtypes = {}
    for name, tensor in plain.items():
        dtype = dtype_name(tensor, "save", name)
        if name in half and dtype != "F16":
            half_dtypes[name], dtype = dtype, "F16"
            _check_half(name, tensor)
        sources.append(TensorSource(name, dtype, tuple(tensor.shape), partial(_stored_bytes, tensor, dtype)))
    fixed = {
        "format": FORMAT,
        "version": VERSION,
        "quantizer": compact_json(quantizer_info or {"class": "none", "arguments": {}}),
        "layout": layout_text(layouts, ties, half_dtypes, buffers),
    }

    def metadata(sums: Sequence[str]) -> dict[str, str]:
        return fixed | {"crc32": compact_json(list(sums)), "header_crc32": NO_CHECKSUM.decode()}

    write_safetensors(path, sources, metadata, progress)


def read_packed(path: str | os.PathLike[str], progress: Progress | None = None) -> PackedContents:
    """Read a packed file into memory, every size, width, checksum and range verified before any decoding.

    Raises:
        PackedFileError: naming the file and the tensor. OSError: the file cannot be read.
    """
    path = os.fspath(path)
    with open_file(path) as file:
        layout = read_layout(file, path)
        stored = {}
        for name in layout.header.tensors:
            stored[name] = _read_tensor(file, layout, name)
            if progress is not None:
                entry = layout.header.tensors[name]
                progress(name, entry.end, layout.header.file_bytes - layout.header.data_start)
    packed = {name: _packed_tensor(layout, name, stored) for name in layout.weights}
    return PackedContents(
        path,
        packed,
        {name: stored[name] for name in layout.plain},
        layout.ties,
        {name: DTYPES[dtype] for name, dtype in layout.half.items()},
        layout.buffers,
        layout.quantizer,
    )


def _pack_stream(values: np.ndarray, bits: int) -> bytes:
    """A table of widths is one stream of levels, so the operator that packs levels packs it."""
    words = functional.pack(
        torch.from_numpy(values).to(torch.int32), torch.tensor([bits], dtype=torch.uint8), group_size=0
    )
    return tensor_bytes(words).tobytes()


def _weight_sources(name: str, weight: PackedTensor) -> tuple[WeightLayout, list[TensorSource]]:
    coding, table = encode_widths(weight.widths.cpu().numpy(), _pack_stream)
    dtype = DTYPE_NAMES[weight.dtype]
    shape, scope = tuple(weight.shape), weight.range_scope
    layout = WeightLayout(name, shape, dtype, weight.group_size, scope, coding, weight.level_count)
    words, ranges = partial(tensor_bytes, weight.words), partial(tensor_bytes, weight.range)
    sources = [
        TensorSource(name + ".range", "F32", layout.range_shape, ranges),
        TensorSource(name + ".words", "U32", tuple(weight.words.shape), words),
    ]
    if coding[0] != "one":
        coded = partial(np.frombuffer, table, dtype=np.uint8)
        sources.append(TensorSource(name + ".widths", "U8", (len(table),), coded))
    return layout, sources


def _stored_bytes(tensor: Tensor, dtype: str) -> np.ndarray:
    return tensor_bytes(tensor.detach().to(DTYPES[dtype]))


def _check_half(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"save: {name}: only floating tensors can be stored in float16, got {tensor.dtype}")
    finite = torch.isfinite(tensor)
    if not bool((torch.isfinite(tensor.to(torch.float16)) == finite).all()):
        largest = tensor[finite].abs().max().item()
        problem = f"its largest element {largest:g} is beyond float16's 65504"
        raise ValueError(f"save: {name}: {problem}; use float16=False or exclude it")


def _read_tensor(file: BinaryIO, layout: PackedLayout, name: str) -> Tensor:
    entry = layout.header.tensors[name]
    data = read_bytes(file, layout.header, entry, layout.checksums[name])
    try:
        return tensor_from_bytes(data, DTYPES[entry.dtype], entry.shape)
    except ValueError as error:
        raise file_error(layout.header.path, name, f"{error}; the file is damaged") from None


def _packed_tensor(layout: PackedLayout, name: str, stored: Mapping[str, Tensor]) -> PackedTensor:
    weight, found = layout.weights[name], stored[name + ".range"]
    if weight.range_scope == "scale":
        sound, expected = torch.isfinite(found), "a finite scale"
    else:
        span = found[..., 1] - found[..., 0]
        sound = torch.isfinite(span) & (span >= 0)
        expected = "ranges lo <= hi, finite and no further apart than float32 can hold"
    if not bool(sound.all()):
        raise file_error(layout.header.path, name + ".range", f"expected {expected}; damaged or hostile")
    return PackedTensor(
        stored[name + ".words"].view(torch.int32),
        torch.from_numpy(layout.widths[name]),
        found,
        weight.shape,
        DTYPES[weight.dtype],
        weight.group_size,
        weight.range_scope,
        weight.level_count,
    )
