"""A packed file as an ordinary safetensors checkpoint, in any float type."""

from __future__ import annotations

import os
from functools import partial

import numpy as np

from ..files.budget import Budget
from ..files.safetensors_reader import printable
from ..files.safetensors_writer import TensorSource, write_safetensors
from ..files.tensor_bytes import DTYPE_NAMES, tensor_bytes
from ..packed.contents import Entry, PackedContents
from .options import ALL_DTYPES, ExportOptions, cast
from .report import ExportedTensor, ExportReport, float_error

NAME = "safetensors"


def write(contents: PackedContents, output: str, options: ExportOptions) -> ExportReport:
    """Write every entry of the state dict, tied names as copies; floating tensors in ``options.dtype``.

    Raises:
        ExportError: an element beyond the dtype. BudgetError: the copies take more than ``options.max_bytes``.
    """
    entries = contents.entries()
    exported: dict[str, ExportedTensor] = {}
    sources, sizes = [], {}
    for name, entry in entries.items():
        dtype = ALL_DTYPES[options.dtype] if entry.dtype.is_floating_point else entry.dtype
        data = partial(_data, contents, name, options, exported)
        sources.append(TensorSource(name, DTYPE_NAMES[dtype], entry.shape, data))
        sizes[name] = dtype.itemsize * int(np.prod(entry.shape, dtype=object))
    _check_budget(contents, entries, sizes, options)
    write_safetensors(output, sources, {"format": "pt"}, progress=options.progress)
    tensors = tuple(exported[name] for name in entries)
    return ExportReport(contents.path, output, NAME, os.path.getsize(output), tensors)


def _check_budget(
    contents: PackedContents, entries: dict[str, Entry], sizes: dict[str, int], options: ExportOptions
) -> None:
    """What a file makes of itself is bounded: its ties become copies."""
    stored = sum({entries[name].stored_name: size for name, size in sizes.items()}.values())
    budget = Budget(contents.path, stored, options.max_bytes)
    for name, size in sizes.items():
        budget.take(size, printable(name))


def _data(
    contents: PackedContents, name: str, options: ExportOptions, exported: dict[str, ExportedTensor]
) -> np.ndarray:
    """The bytes of one tensor, made when its turn comes; what they come to is noted."""
    tensor = contents.tensor(name)
    changed = cast(NAME, name, tensor, options.dtype)
    data = tensor_bytes(changed)
    kind = str(changed.dtype).removeprefix("torch.")
    exported[name] = ExportedTensor(name, kind, len(data), float_error(tensor, changed))
    return data
