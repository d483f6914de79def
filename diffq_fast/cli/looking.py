"""The commands `diffq-fast diff` and `diffq-fast bench`: arguments, and what they print. `packed` does the work."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], None]


def add_diff_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `diff`, which, like the system's, answers 2 to every failure."""
    parser.set_defaults(failure=2)
    parser.add_argument("first", help="packed file, or ordinary safetensors checkpoint")
    parser.add_argument("second", help="the same")


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bench`."""
    parser.add_argument("file")
    text = "how often each work is measured (default 10)"
    parser.add_argument("--repetitions", type=int, default=10, metavar="N", help=text)
    text = "how products take their vectors (default float)"
    parser.add_argument("--activations", choices=("float", "int8"), default="float", help=text)


def compare_files(arguments: argparse.Namespace, progress: Progress) -> tuple[bool, dict[str, Any], str]:
    """Whether both files are equal, and their comparison as JSON values and as text."""
    from ..packed.compare import compare, comparison_table

    comparison = compare(arguments.first, arguments.second, progress)
    return comparison.equal, comparison.to_dict(), comparison_table(comparison)


def measure_file(arguments: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], str]:
    """The speeds of a file as JSON values and as text."""
    from ..packed.speed import measure

    report = measure(arguments.file, arguments.repetitions, progress, arguments.activations)
    return report.to_dict(), report.table()
