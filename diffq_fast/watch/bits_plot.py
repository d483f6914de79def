"""Pictures of how bits are spread over the weights: a bar for each weight, divided by width. No torch is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

ROW_HEIGHT, MOST_HEIGHT = 0.35, 60.0  # inches


class BitsRow(NamedTuple):
    """One weight: how many of its elements (or groups) have each width, and its mean number of bits."""

    name: str
    histogram: dict[int, int]
    mean: float


def plot_bits(quantizer: Any, path: str | os.PathLike[str], title: str = "Bits that each layer learned") -> None:
    """Draw how many groups of each weight have how many bits, as an image; the first weight is at the top.

    For a packed file, use the ``plot`` of what :func:`diffq_fast.inspect` returns.

    Args:
        quantizer: a DiffQuantizer, in training or afterwards.
        path: of the image; its ending gives the format.
        title: what stands above the bars.

    Raises:
        ImportError: matplotlib is not installed.
    """
    means = quantizer.bits_per_weight()
    rows = []
    for name, widths in quantizer.widths().items():
        counts = widths.int().bincount().tolist() if len(widths) else []
        histogram = {width: count for width, count in enumerate(counts) if count}
        rows.append(BitsRow(name.removesuffix(".weight"), histogram, means.get(name, 0.0)))
    draw_bits(rows, path, title, f"groups of {quantizer.group_size}, per cent" if quantizer.group_size else "per cent")


def draw_bits(rows: Sequence[BitsRow], path: str | os.PathLike[str], title: str, label: str) -> None:
    """Draw one bar for each row, divided by the shares of its widths, with its mean behind it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plot: a picture needs matplotlib ({error}): pip install matplotlib") from None
    widths = sorted({width for row in rows for width in row.histogram})
    height = min(1.45 + ROW_HEIGHT * max(len(rows), 1), MOST_HEIGHT)
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    left = [0.0] * len(rows)
    for width in range(widths[0], widths[-1] + 1) if widths else ():
        shares = [100 * row.histogram.get(width, 0) / max(sum(row.histogram.values()), 1) for row in rows]
        colour = matplotlib.colormaps["viridis"](0.95 - 0.9 * (width - widths[0]) / max(1, widths[-1] - widths[0]))
        axes.barh(places, shares, left=left, color=colour, label=f"{width} bit" + "s" * (width != 1))
        left = [start + share for start, share in zip(left, shares, strict=True)]
    size = max(2.0, min(10.0, 72 * 0.75 * height / max(len(rows), 1)))
    axes.set_yticks(places, [row.name for row in rows], fontsize=size)
    for place, row in enumerate(rows):
        axes.annotate(f"mean {row.mean:.1f}", (101, place), va="center", fontsize=size, annotation_clip=False)
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6), xlabel=label, title=title)
    if widths:
        figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)
