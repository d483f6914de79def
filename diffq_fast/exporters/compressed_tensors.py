"""A packed file in the layout `pack-quantized` of compressed-tensors, which Hugging Face's transformers and vLLM read.

A matrix NAME of signed levels with scales becomes NAME_packed (int32, a row's levels one behind the other, least
significant bits first, each with half its range added), NAME_scale and NAME_shape. What the levels mean stands in a
JSON beside the file, which belongs into the model's config.json as its `quantization_config`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files.atomic_file import atomic_file, check_output
from ..files.budget import Budget
from ..files.safetensors_reader import printable
from ..files.safetensors_writer import TensorSource, write_safetensors
from ..files.tensor_bytes import DTYPE_NAMES, tensor_bytes
from ..packed.contents import PackedContents
from .levels import Levels, levels_of, packed_bytes
from .options import DTYPES, ExportError, ExportOptions, cast
from .report import ExportedTensor, ExportReport, float_error

NAME = "compressed-tensors"
WIDTHS = (4, 8)  # of a level; others are read by few programs
NEW_GROUPS = {4: 32, 8: 128}  # elements of a group where a weight is rounded again
ENDING = ".weight"


class Quantised(NamedTuple):
    """A matrix: signed int32 levels `[rows, columns]`, scales `[rows, groups of a row]` or `[1]` for the whole."""

    bits: int
    strategy: str
    group_size: int | None
    levels: np.ndarray
    scales: Tensor

    @property
    def kind(self) -> str:
        size = f" of {self.group_size}" if self.group_size else ""
        return f"int{self.bits}, a scale for each {self.strategy}{size}"

    def values(self) -> Tensor:
        """float32 `[rows, columns]`: what a reader gets."""
        scales = self.scales.to(torch.float32)
        if scales.dim() == 2:
            scales = scales.repeat_interleave(self.levels.shape[1] // scales.shape[1], 1)
        return torch.from_numpy(self.levels).to(torch.float32) * scales


def write(contents: PackedContents, output: str, options: ExportOptions) -> ExportReport:
    """Write every entry of the state dict, tied names as copies, and the configuration beside it.

    Raises:
        ExportError: a packed weight that has no such form within ``options.tolerance``, unless ``keep_float`` says so.
    """
    beside = os.path.splitext(output)[0] + ".quantization_config.json"
    check_output("export", beside, contents.path)
    entries = contents.entries()
    sizes = {name: each.dtype.itemsize * torch.Size(each.shape).numel() for name, each in entries.items()}
    honest = sum(sizes[name] for name in (*contents.packed, *contents.plain))
    budget = Budget(contents.path, honest, options.max_bytes)
    sources, exported, matrices, floats = [], [], {}, []
    for done, (name, entry) in enumerate(entries.items(), 1):
        budget.take(sizes[name], printable(name))
        tensor, made = contents.tensor(name), None
        if entry.stored_name in contents.packed:
            made = _quantised(contents, name, entry.stored_name, tensor, options)
            floats += [name] if made is None and tensor.dim() == 2 else []
        parts = dict(_parts(name, made)) if made else {name: cast(NAME, name, tensor, options.dtype)}
        if made:
            matrices[name] = made
        error = float_error(tensor, made.values() if made else parts[name])
        kind = made.kind if made else str(parts[name].dtype).removeprefix("torch.")
        size = sum(part.nbytes for part in parts.values())
        exported.append(ExportedTensor(name, kind, size, error))
        sources += [_source(part, value) for part, value in parts.items()]
        if options.progress is not None:
            options.progress(name, done, len(entries))
    with atomic_file(beside) as file:
        file.write(json.dumps(configuration(matrices, floats), indent=2).encode("utf-8"))
    write_safetensors(output, sources, {"format": "pt"})
    note = f"{beside} belongs into the model's config.json as quantization_config"
    return ExportReport(contents.path, output, NAME, os.path.getsize(output), tuple(exported), (note,))


def configuration(matrices: dict[str, Quantised], floats: list[str]) -> dict[str, Any]:
    """The `quantization_config` of a model: one group for each form, with the names of its modules."""
    groups: dict[tuple[int, str, int | None], list[str]] = {}
    for name, made in matrices.items():
        groups.setdefault((made.bits, made.strategy, made.group_size), []).append(name.removesuffix(ENDING))
    stated = {}
    for number, ((bits, strategy, size), modules) in enumerate(groups.items()):
        weights = {
            "num_bits": bits,
            "type": "int",
            "symmetric": True,
            "strategy": strategy,
            "group_size": size,
            "dynamic": False,
        }
        whole = {"targets": modules, "weights": weights, "input_activations": None, "output_activations": None}
        stated[f"group_{number}"] = whole
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": stated,
        "ignore": [name.removesuffix(ENDING) for name in floats],
    }


def _quantised(
    contents: PackedContents, name: str, stored: str, tensor: Tensor, options: ExportOptions
) -> Quantised | None:
    """The matrix, or None where it stays in floats, which must have been asked for unless it is no matrix."""
    if any(fnmatchcase(name, pattern) for pattern in options.floats) or tensor.dim() != 2 or not tensor.numel():
        return None
    reason = f"its name does not end with {ENDING}"
    if name.endswith(ENDING):
        levels, scale_dtype = levels_of(contents, stored), DTYPES[options.dtype]
        norm = float(tensor.double().square().sum())
        reason, least = "", float("inf")
        for made in _candidates(levels, tensor.float(), scale_dtype):
            error = float((made.values().double() - tensor.double()).square().sum())
            if error <= options.tolerance**2 * norm:
                return made
            least = min(least, error)
        far = (least / norm) ** 0.5 if norm else least
        reason = "its widths, ranges or levels have no integers of 4 or 8 bits with one scale and no offset"
        reason += f", and rounded to such it is {far:.2g} off; --tolerance allows {options.tolerance:g}"
    if options.keep_float:
        return None
    raise ExportError(NAME, name, reason)


def _candidates(levels: Levels, weight: Tensor, dtype: torch.dtype) -> Iterator[Quantised]:
    """Forms of a matrix, the smallest first: with its own levels, then rounded again."""
    rows, columns = weight.shape
    for bits in WIDTHS:
        if levels.signed and levels.bits <= bits:
            own = _own(levels, (rows, columns), bits, dtype)
            if own is not None:
                yield own
        size = NEW_GROUPS[bits] if columns % NEW_GROUPS[bits] == 0 else columns
        yield _rounded(weight, bits, size, dtype)


def _own(levels: Levels, shape: tuple[int, int], bits: int, dtype: torch.dtype) -> Quantised | None:
    """The file's own levels; None where its groups are no parts of rows."""
    rows, columns = shape
    flat, scales = levels.levels.reshape(shape), torch.from_numpy(levels.scales).to(dtype)
    if len(scales) == 1:
        return Quantised(bits, "tensor", None, flat, scales)
    if levels.group_size == columns:
        return Quantised(bits, "channel", None, flat, scales.reshape(rows, 1))
    if columns % levels.group_size == 0:
        return Quantised(bits, "group", levels.group_size, flat, scales.reshape(rows, -1))
    return None


def _rounded(weight: Tensor, bits: int, size: int, dtype: torch.dtype) -> Quantised:
    """The nearest levels, with the scale that the largest element of each group asks for."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // size, size)
    most = (1 << bits - 1) - 1
    scales = (groups.abs().amax(2) / most).to(dtype)
    wide = scales.to(torch.float32)
    levels = (groups / torch.where(wide == 0, 1.0, wide)[..., None]).round().clamp(-most - 1, most)
    strategy, stated = ("channel", None) if size == columns else ("group", size)
    return Quantised(bits, strategy, stated, levels.reshape(rows, columns).to(torch.int32).numpy(), scales)


def _parts(name: str, made: Quantised) -> Iterator[tuple[str, Tensor]]:
    rows, columns = made.levels.shape
    a_word = 32 // made.bits
    padded = np.zeros((rows, -(-columns // a_word) * a_word), np.int32)
    padded[:, :columns] = made.levels + (1 << made.bits - 1)
    words = np.frombuffer(packed_bytes(padded.reshape(-1), made.bits), "<i4").reshape(rows, -1)
    yield name + "_packed", torch.from_numpy(words.copy())
    yield name + "_scale", made.scales
    yield name + "_shape", torch.tensor([rows, columns], dtype=torch.int64, device="cpu")


def _source(name: str, tensor: Tensor) -> TensorSource:
    data = tensor_bytes(tensor)
    return TensorSource(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), lambda: data)
