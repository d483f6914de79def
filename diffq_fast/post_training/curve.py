"""The dry run: size against error of a checkpoint, before anything is packed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from ..files.safetensors_reader import Progress
from ..packed.checkpoint import MEGABYTE
from .allocation import scale_for
from .calibration import Calibration, CalibrationFile
from .pack import Packing
from .plan import Selection
from .sources import open_source

CURVE_BITS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)


class Point(NamedTuple):
    """A size of the file, estimated from samples of the rows, and what the errors come to there.

    bits_per_weight: of the packed weights. megabytes: of the whole file. quality: decibels, as
    :func:`diffq_fast.pack_checkpoint` has it. relative_error: root of noise over signal.
    """

    bits_per_weight: float
    megabytes: float
    quality: float
    relative_error: float


def size_curve(
    source: str | os.PathLike[str],
    *,
    bits: Sequence[float] = CURVE_BITS,
    selection: Selection | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    float16: bool = True,
    progress: Progress | None = None,
) -> list[Point]:
    """Size against error at some numbers of bits per weight, those left out that cannot be reached.

    Raises like :func:`diffq_fast.pack_checkpoint`; nothing is written.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(open_source(source))
        packing = Packing(opened, selection or Selection(), CalibrationFile(calibration, stack), progress)
        if not packing.names:
            raise ValueError(f"pack: {opened.path}: no tensor is to be packed: none is floating and large enough")
        points = (_point(packing, each, packing.other_bytes(float16)) for each in bits)
        return [point for point in points if point is not None]


def _point(packing: Packing, bits: float, other: float) -> Point | None:
    try:
        scale = scale_for(lambda scale: packing.estimate(scale).bits <= packing.bits_for(bits), rising=False)
    except ValueError:
        return None
    found = packing.estimate(scale)
    error = (found.noise / found.signal) ** 0.5 if found.signal else 0.0
    return Point(bits, (other + found.bits / 8) / MEGABYTE, found.quality, error)


def curve_table(points: Sequence[Point]) -> str:
    """The curve as lines of text."""
    lines = ["bits per weight        MB   quality (dB)   relative error"]
    for each in points:
        lines.append(
            f"{each.bits_per_weight:15.2f}{each.megabytes:10.2f}{each.quality:15.1f}{100 * each.relative_error:15.1f} %"
        )
    return "\n".join(lines)


def plot_curve(points: Sequence[Point], path: str | os.PathLike[str]) -> None:
    """Draw the curve to an image.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure_of: Any
    try:
        from matplotlib.figure import Figure as figure_of  # noqa: N813
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: pip install 'diffq_fast[plot]'") from error
    figure = figure_of(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([each.megabytes for each in points], [each.quality for each in points], marker="o")
    for each in points:
        place = each.megabytes, each.quality
        axes.annotate(f"{each.bits_per_weight:.1f}", place, (4, -10), textcoords="offset points")
    axes.set_xlabel("size of the file in MB (numbers: bits per weight)")
    axes.set_ylabel("quality: signal to noise in dB")
    axes.grid(alpha=0.3)
    figure.savefig(Path(path), dpi=150)
