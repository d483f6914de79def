"""Export a packed file: find the format's exporter, check what is asked for, and let it write."""

from __future__ import annotations

import importlib
import os
from typing import Any

from ..files.atomic_file import check_output
from ..packed.contents import read_packed
from .options import ALL_DTYPES, DTYPES, ExportOptions
from .report import ExportReport

ENDINGS = {
    "safetensors": ".{dtype}.safetensors",
    "onnx": ".onnx",
    "gguf": ".gguf",
    "compressed-tensors": ".compressed.safetensors",
}


def export(
    path: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, *, to: str, **options: Any
) -> ExportReport:
    """Write a packed file as a file of another format, all or nothing (docs/exporting.md).

    Args:
        path: a packed file; all of it is verified first.
        output: the new file. Left out, it stands beside `path` with the format's ending, and must not exist yet.
        to: "safetensors", "onnx", "gguf" or "compressed-tensors".
        options: fields of :class:`.ExportOptions`: dtype, graph, portable, activations, tolerance, keep_float,
            floats, max_bytes, progress.

    Returns:
        what became of each tensor, and the error of each and of all against the packed file's weights.

    Raises:
        PackedFileError: the file is damaged. ExportError: a weight that the format cannot express, with the reason.
        ValueError: an unknown format or dtype, or an output that is the input or a folder.
        ImportError: a package that the format needs is not there.
    """
    if to not in ENDINGS:
        raise ValueError(f"export: expected one of {', '.join(ENDINGS)}, got {to!r}")
    known = ExportOptions(**options)
    dtypes = ALL_DTYPES if to == "safetensors" else DTYPES
    if known.dtype not in dtypes:
        raise ValueError(f"export: dtype for {to} must be one of {', '.join(dtypes)}, got {known.dtype!r}")
    if not known.tolerance >= 0:
        raise ValueError(f"export: tolerance must be 0 or more, got {known.tolerance}")
    if known.activations not in ("float", "int8") or (known.activations == "int8" and (to != "onnx" or known.portable)):
        given = f"{known.activations!r} for {to}{', portable' if known.portable else ''}"
        raise ValueError(f"export: activations must be 'float' or, for onnx with MatMulNBits, 'int8', got {given}")
    if (to == "onnx") != (known.graph is not None):
        wanted = "onnx needs graph=, the model's ONNX file in float" if to == "onnx" else f"graph= is not for {to}"
        raise ValueError(f"export: {wanted}")
    path = os.fspath(path)
    target = default_output(path, to, known.dtype) if output is None else os.fspath(output)
    if output is None and os.path.exists(target):
        raise ValueError(f"export: {target} is there already; give the output to replace it")
    check_output("export", target, path, *([known.graph] if known.graph else []))
    exporter = importlib.import_module(f".{to.replace('-', '_')}", __package__)
    return exporter.write(read_packed(path), target, known)


def default_output(path: str, to: str, dtype: str) -> str:
    """Where an export goes that was not told."""
    stem = path.removesuffix(".safetensors")
    return stem + ENDINGS[to].format(dtype=dtype)
