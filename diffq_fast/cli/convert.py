"""The command `diffq-fast convert`: its arguments, and what it prints. `compat.convert` does the work."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", help="state or package, written by torch.save or Demucs")
    parser.add_argument("output", help="packed file to write")
    model = "imported and called to build the model, which gives names and shapes; your choice, never the file's"
    parser.add_argument("--model", metavar="MODULE:CALLABLE", help=model)
    stated = "arguments of the quantizer that the file does not state, such as '{\"min_size\": 1}'"
    parser.add_argument("--arguments", metavar="JSON", help=stated)


def convert_file(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Convert what the command line names; returns the result as JSON values and as text."""
    from ..compat.convert import convert

    try:
        given = json.loads(arguments.arguments or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError(f"--arguments must be a JSON object, got {arguments.arguments}")
    model = _import(arguments.model) if arguments.model else None
    conversion = convert(arguments.file, arguments.output, model, given, max_bytes=arguments.max_bytes)
    size, weights, plain = os.path.getsize(arguments.output), len(conversion.packed), len(conversion.plain)
    result = {
        "output": arguments.output,
        "bytes": size,
        "quantizer": conversion.quantizer,
        "weights": weights,
        "plain": plain,
        "not_carried_over": conversion.lost,
    }
    lines = [f"{arguments.output}: {size:,} bytes, {weights} weights, {plain} plain tensors"]
    return result, "\n".join(lines + [f"not carried over: {each}" for each in conversion.lost])


def _import(spec: str) -> Any:
    module, _, name = spec.partition(":")
    if not module or not name:
        raise ValueError(f"--model must be MODULE:CALLABLE, got {spec}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        value: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--model {spec}: importing {module} failed: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        raise ValueError(f"--model {spec}: {module} has nothing to call by the name {name}")
    return value
