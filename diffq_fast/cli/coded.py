"""The command `diffq-fast pack` for coded sizes: its arguments, and what it prints. `post_training` does the work."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from ..files.safetensors_reader import printable

Progress = Callable[[str, int, int], None]
NAMES = ("bits_per_weight", "target_mb", "quality", "keep", "calibration", "dry_run", "plot")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    group = parser.add_argument_group("post-training packing of any checkpoint, entropy coded")
    coding = "coded (default): steps by row, levels entropy coded; fixed: one width of --bits and ranges, uncoded"
    group.add_argument("--coding", choices=("coded", "fixed"), help=coding)
    text = "bits of the packed weights, levels, steps and tables together (default 4)"
    group.add_argument("--bits-per-weight", type=float, metavar="B", help=text)
    group.add_argument("--target-mb", type=float, metavar="MB", help="size of the whole file in MB (2^20 bytes)")
    text = "signal to noise of the weights in decibels: 20 is an error of a tenth, 6 more are about one bit"
    group.add_argument("--quality", type=float, metavar="DB", help=text)
    text = "pack tensors of this name at so many bits, or without =BITS keep them as they are; may be repeated"
    group.add_argument("--keep", action="append", metavar="PATTERN[=BITS]", help=text)
    text = "safetensors file of second moments, as diffq_fast.calibrate gives them: rounding with feedback of errors"
    group.add_argument("--calibration", metavar="FILE", help=text)
    group.add_argument(
        "--dry-run", action="store_true", default=None, help="print size against error, and write nothing"
    )
    group.add_argument("--plot", metavar="PNG", help="with --dry-run: draw the curve to an image (needs matplotlib)")


def parsed_keep(arguments: argparse.Namespace) -> dict[str, float | None]:
    """PATTERN=BITS and PATTERN as the packer takes them; what --exclude names is kept as it is.

    Raises:
        ValueError: bits that are no number.
    """
    keep: dict[str, float | None] = {}
    for text in arguments.keep or []:
        pattern, equals, bits = text.rpartition("=")
        if not equals:
            keep[text] = None
            continue
        try:
            keep[pattern] = float(bits)
        except ValueError:
            raise ValueError(f"--keep {text}: expected PATTERN=BITS, and bits as a number, got {bits!r}") from None
    return keep | dict.fromkeys(arguments.exclude or [])


def pack_coded(arguments: argparse.Namespace, progress: Progress) -> tuple[float | None, str, list[str]]:
    """Pack what the command line names; returns the quality (None: no error at all), a text, and notes for stderr."""
    from ..post_training.pack import pack_checkpoint

    options: dict[str, Any] = {name: getattr(arguments, name) for name in ("target_mb", "quality", "bits_per_weight")}
    if arguments.bits is not None:
        options["bits_per_weight"] = float(arguments.bits)
    keep, least = parsed_keep(arguments), 0.01 if arguments.min_size is None else arguments.min_size
    result = pack_checkpoint(
        arguments.file,
        arguments.output,
        **options,
        keep=keep,
        calibration=arguments.calibration,
        min_size=least,
        progress=progress,
    )
    text = f"{arguments.output}: {result.file_bytes:,} bytes, {result.bits_per_weight:.2f} bits per weight, "
    text += f"{len(result.weights)} weights packed, signal to noise {result.quality:.1f} dB"
    notes = []
    if result.double:
        names = ", ".join(map(printable, result.double[:3])) + (", …" if len(result.double) > 3 else "")
        problem = f"{len(result.double)} float64 tensors are kept as they are, unpacked ({names})"
        notes.append(f"{problem}; convert them to float32 first")
    elif not result.weights:
        notes.append("no tensor was packed: none is floating, of two dimensions, above --min-size and not excluded")
    return result.quality if math.isfinite(result.quality) else None, text, notes


def dry_run(arguments: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], str, list[str]]:
    """The curve of size against error, as JSON values and as text, without notes; with --plot an image too."""
    from ..post_training.curve import curve_table, plot_curve, size_curve
    from ..post_training.plan import Selection

    selection = Selection(0.01 if arguments.min_size is None else arguments.min_size, parsed_keep(arguments))
    points = size_curve(arguments.file, selection=selection, calibration=arguments.calibration, progress=progress)
    if arguments.plot:
        plot_curve(points, arguments.plot)
    return {"curve": [each._asdict() for each in points]}, curve_table(points), []
