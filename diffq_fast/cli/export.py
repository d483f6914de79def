"""The command `diffq-fast export`: its arguments, and what it prints. `exporters` does the work."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

FORMATS = ("safetensors", "onnx", "gguf", "compressed-tensors")
FLOATS = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", help="packed file")
    parser.add_argument("--to", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("-o", "--output", metavar="OUT", help="file to write (default: beside FILE, if it is new)")
    text = "of floating tensors (default float32); float64 and float8 for safetensors alone"
    parser.add_argument("--dtype", choices=FLOATS, default="float32", help=text)
    text = "onnx: the model in float, whose initialisers have the names of the file's tensors"
    parser.add_argument("--graph", metavar="ONNX", help=text)
    text = "onnx: standard operators alone; without it MatMulNBits of onnxruntime where it fits"
    parser.add_argument("--portable", action="store_true", help=text)
    text = "onnx: how MatMulNBits takes its inputs, exactly (default) or rounded to int8, which is faster"
    parser.add_argument("--activations", choices=("float", "int8"), default="float", help=text)
    text = "gguf, compressed-tensors: the relative error up to which a weight may be rounded again (default 0.01)"
    parser.add_argument("--tolerance", type=float, default=0.01, metavar="E", help=text)
    text = "write weights that the format cannot express as floats, in place of refusing the file"
    parser.add_argument("--keep-float", action="store_true", help=text)
    text = "write weights whose name matches as floats in any case; may be repeated"
    parser.add_argument("--float", action="append", default=[], dest="floats", metavar="PATTERN", help=text)


def export_file(arguments: argparse.Namespace, progress: Callable[[str, int, int], None]) -> tuple[dict[str, Any], str]:
    """Export what the command line names; returns the result as JSON values and as text."""
    from ..exporters.export import export

    names = ("dtype", "graph", "portable", "activations", "tolerance", "keep_float", "max_bytes")
    options = {name: getattr(arguments, name) for name in names} | {"floats": tuple(arguments.floats)}
    report = export(arguments.file, arguments.output, to=arguments.to, progress=progress, **options)
    return report.to_dict(), report.table()
