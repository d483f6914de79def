"""A packed file as GGUF: each weight in the smallest type that keeps it, under its own name.

The file states its tensors, and who made it; the settings of a language model, which llama.cpp asks for, a packed file
does not know. Its layout is GGUF's version 3: a header, key-value pairs, a line for each tensor, and the aligned data.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import torch

from ..files.atomic_file import atomic_file
from ..files.budget import Budget
from ..files.safetensors_reader import printable
from ..files.tensor_bytes import tensor_bytes
from ..packed.contents import PackedContents
from .gguf_blocks import (
    BF16,
    BITS,
    BLOCK,
    BLOCK_TYPES,
    F16,
    F32,
    WITH_OFFSET,
    GgufType,
    Quantised,
    blocks_of,
    quantise,
)
from .levels import Levels, levels_of
from .options import ExportError, ExportOptions, cast
from .report import ExportedTensor, ExportReport, float_error

NAME = "gguf"
MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
STRING, UINT32 = 8, 4  # types of values
MOST_NAME, MOST_DIMENSIONS = 63, 4  # of ggml, whose names end with a zero within 64 bytes
FLOATS = {"float32": F32, "float16": F16, "bfloat16": BF16}
INTEGERS = {
    torch.int8: GgufType("I8", 24, 1, 1),
    torch.int16: GgufType("I16", 25, 2, 1),
    torch.int32: GgufType("I32", 26, 4, 1),
    torch.int64: GgufType("I64", 27, 8, 1),
    torch.bool: GgufType("I8", 24, 1, 1),
}


class Stored(NamedTuple):
    """One tensor as the file has it; `shape` as torch says it."""

    name: str
    type: GgufType
    shape: tuple[int, ...]
    data: np.ndarray


def write(contents: PackedContents, output: str, options: ExportOptions) -> ExportReport:
    """Write every entry of the state dict, tied names as copies.

    Raises:
        ExportError: a name, a shape or a dtype that GGUF does not have. BudgetError: the copies take too much.
    """
    entries = contents.entries()
    sizes = {name: each.dtype.itemsize * _count(each.shape) for name, each in entries.items()}
    honest = sum(sizes[name] for name in (*contents.packed, *contents.plain))
    budget = Budget(contents.path, honest, options.max_bytes)
    stored, exported = [], []
    for done, name in enumerate(entries, 1):
        _check(name, entries[name].shape)
        budget.take(sizes[name], printable(name))
        tensor, told = _stored(contents, (name, entries[name].stored_name), options)
        stored.append(tensor)
        exported.append(told)
        if options.progress is not None:
            options.progress(name, done, len(entries))
    with atomic_file(output) as file:
        for part in _file_parts(stored):
            file.write(part)
    return ExportReport(contents.path, output, NAME, os.path.getsize(output), tuple(exported))


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _check(name: str, shape: tuple[int, ...]) -> None:
    if len(name.encode("utf-8")) > MOST_NAME:
        raise ExportError(
            NAME, name, f"its name has {len(name.encode('utf-8'))} bytes, at most {MOST_NAME} are allowed"
        )
    if len(shape) > MOST_DIMENSIONS:
        raise ExportError(NAME, name, f"it has {len(shape)} dimensions, at most {MOST_DIMENSIONS} are allowed")


def _stored(contents: PackedContents, names: tuple[str, str], options: ExportOptions) -> tuple[Stored, ExportedTensor]:
    """One entry, by its name and that under which the packed file has it."""
    (name, stored_name), tensor = names, contents.tensor(names[0])
    shape = tuple(tensor.shape) or (1,)
    packed = stored_name in contents.packed and not any(fnmatchcase(name, each) for each in options.floats)
    if packed and tensor.numel() and tensor.dim() > 1 and shape[-1] % BLOCK == 0:
        levels = levels_of(contents, stored_name)
        found = smallest(tensor.float().numpy().reshape(-1, BLOCK), levels, options.tolerance)
        if found is not None:
            error = float_error(tensor, torch.from_numpy(found.values.reshape(-1)))
            kept = Stored(name, found.type, shape, found.data)
            return kept, ExportedTensor(name, found.type.name, found.data.nbytes, error)
    if tensor.is_floating_point():
        kind, dtype = _float_type(tensor, packed, options)
        changed = cast(NAME, name, tensor, dtype)
    elif tensor.dtype in INTEGERS:
        kind, changed = INTEGERS[tensor.dtype], tensor.to(torch.int8) if tensor.dtype == torch.bool else tensor
    else:
        raise ExportError(NAME, name, f"it has no type for {tensor.dtype}")
    data = tensor_bytes(changed)
    return Stored(name, kind, shape, data), ExportedTensor(name, kind.name, len(data), float_error(tensor, changed))


def _float_type(tensor: torch.Tensor, packed: bool, options: ExportOptions) -> tuple[GgufType, str]:
    """The float type of a tensor: what is asked for, or half of it for a packed weight that half keeps."""
    if packed and options.dtype == "float32" and tensor.numel():
        half = float_error(tensor, tensor.half())
        if half.relative <= options.tolerance:
            return F16, "float16"
    return FLOATS[options.dtype], options.dtype


def smallest(values: np.ndarray, levels: Levels, tolerance: float) -> Quantised | None:
    """The smallest blocks whose error is at most the tolerance; with the file's own levels, where they fit, or with new
    ones. None where even those of 8 bits are further off."""
    norm = float(np.square(values, dtype=np.float64).sum())
    for kind in BLOCK_TYPES:
        tried = [made for made in (own_levels(levels, kind), quantise(values, kind)) if made is not None]
        errors = [float(np.square(made.values - values, dtype=np.float64).sum()) for made in tried]
        best = int(np.argmin([error if np.isfinite(error) else np.inf for error in errors]))
        if errors[best] <= tolerance**2 * norm:
            return tried[best]
    return None


def own_levels(levels: Levels, kind: GgufType) -> Quantised | None:
    """The file's levels with its scales and offsets in float16; None where its groups or bits do not fit."""
    if levels.signed == (kind in WITH_OFFSET) or levels.bits > BITS[kind]:
        return None
    alone = len(levels.scales) == 1
    if not alone and levels.group_size % BLOCK:
        return None
    of_blocks = np.arange(0, len(levels.levels), BLOCK) // levels.group_size
    scales, offsets = levels.scales[of_blocks], levels.offsets[of_blocks]
    with np.errstate(over="ignore"):
        return blocks_of(levels.levels.reshape(-1, BLOCK), scales.astype(np.float16), offsets.astype(np.float16), kind)


def _file_parts(tensors: list[Stored]) -> Iterator[bytes]:
    """The file, in order."""
    pairs = [
        ("general.architecture", STRING, _string("diffq_fast")),
        ("general.quantization_version", UINT32, struct.pack("<I", 2)),
        ("general.alignment", UINT32, struct.pack("<I", ALIGNMENT)),
    ]
    head = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(pairs))
    for key, kind, value in pairs:
        head += _string(key) + struct.pack("<I", kind) + value
    place = 0
    for each in tensors:
        sizes = each.shape[::-1]  # the fastest first
        head += _string(each.name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, each.type.number, place)
        place += -(-each.data.nbytes // ALIGNMENT) * ALIGNMENT
    yield head + bytes(-len(head) % ALIGNMENT)
    for each in tensors:
        yield each.data.tobytes()
        yield bytes(-each.data.nbytes % ALIGNMENT)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw
