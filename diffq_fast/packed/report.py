"""What a packed file holds and what it costs, read from its header and width tables: no torch, no levels."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..files.safetensors_reader import ITEM_BYTES, open_file, printable
from ..reference.sizes import word_count
from ..watch.bits_plot import BitsRow, draw_bits
from .layout import STEPS, PackedLayout, learned_suffix, read_layout
from .widths import stream_levels

PURPOSES = ("levels", "widths", "ranges", "plain parameters", "buffers", "learned values", "header")


@dataclass(frozen=True)
class WeightReport:
    """One quantised weight.

    histogram: width -> elements of that width; of a coded weight with steps, class -> elements of that class.
    bytes: levels, widths and ranges. coding: "fixed" or "coded". fixed_bytes: of the levels at their widths, also where
    they are coded; None for steps, which have no widths.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group_size: int
    range_scope: str
    groups: int
    histogram: dict[int, int]
    bytes: int
    coding: str = "fixed"
    fixed_bytes: int | None = None

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def has_steps(self) -> bool:
        """Whether its groups have steps in place of widths: its histogram is then one of classes."""
        return self.range_scope == STEPS

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.count if self.count else 0.0


@dataclass(frozen=True)
class PackedReport:
    """Result of :func:`inspect`.

    activations: bits, range and step of the inputs that are rounded, by the name of the layer.
    file_bytes: the sum of bytes_by_purpose. float_bytes: the same tensors unpacked, in their own dtypes.
    """

    path: str
    file_bytes: int
    float_bytes: int
    quantizer: dict[str, Any]
    weights: tuple[WeightReport, ...]
    bytes_by_purpose: dict[str, int]
    ties: dict[str, str]
    activations: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Bits per quantised element over all weights: levels, widths and ranges."""
        count = sum(weight.count for weight in self.weights)
        return 8 * sum(weight.bytes for weight in self.weights) / count if count else 0.0

    @property
    def histogram(self) -> dict[int, int]:
        """width -> elements of that width, over all weights that have widths, not steps."""
        weights = self._with_widths()
        widths = sorted({width for weight in weights for width in weight.histogram})
        return {width: sum(weight.histogram.get(width, 0) for weight in weights) for width in widths}

    def _with_widths(self) -> list[WeightReport]:
        return [weight for weight in self.weights if not weight.has_steps]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        overall = {"bits_per_weight": self.bits_per_weight, "histogram": self.histogram}
        weights = [asdict(weight) | {"bits_per_weight": weight.bits_per_weight} for weight in self.weights]
        return asdict(self) | overall | {"weights": weights}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def table(self) -> str:
        """The report as text: one line per weight, then bytes by purpose and the totals."""
        rows: list[tuple[str, ...]]
        rows = [("weight", "shape", "group", "bits/weight", "widths", "bytes", "coding")]
        for weight in self.weights:
            shape = "x".join(map(str, weight.shape)) or "scalar"
            group = "all" if weight.group_size == 0 else str(weight.group_size)
            widths = "steps" if weight.has_steps else _span(weight.histogram)
            numbers = (f"{weight.bits_per_weight:.2f}", widths, f"{weight.bytes:,}", _coding_text(weight))
            rows.append((printable(weight.name), shape, group, *numbers))
        if all(weight.coding == "fixed" for weight in self.weights):
            rows = [row[:-1] for row in rows]
        spaces = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(_align(row, spaces)).rstrip() for row in rows] + [""]
        lines += [f"{purpose:<17}{size:>14,} bytes" for purpose, size in self.bytes_by_purpose.items() if size]
        ratio = f", {self.float_bytes / self.file_bytes:.2f} times smaller than unpacked"
        lines += [f"{'in all':<17}{self.file_bytes:>14,} bytes{ratio}", ""]
        lines += [f"{self.bits_per_weight:.2f} bits per weight; {self._widths_text()}"]
        lines += [f"tied: {printable(alias)} = {printable(name)}" for alias, name in self.ties.items()]
        for name, each in self.activations.items():
            scale = f"{each['bits']} bits, range {each['range']:.6g}, step {each['step']:.6g}"
            lines.append(f"input of {printable(name) or 'the model'}: {scale}")
        return "\n".join(lines)

    def _widths_text(self) -> str:
        counted = self._with_widths()
        left_out = len(self.weights) - len(counted)
        steps = f"{left_out} weight{'' if left_out == 1 else 's'} with steps in place of widths"
        widths = f"by width: {_histogram_text(self.histogram)}"
        return widths if not left_out else f"{widths}; {steps} left out" if counted else steps

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw all elements' widths, and each weight's, as bars divided by width. Needs matplotlib.

        Weights with steps are left out; the page of :func:`.write_page` shows the bits that their levels need.
        """
        weights = self._with_widths()
        rows = [BitsRow(weight.name, weight.histogram, _mean(weight.histogram)) for weight in weights]
        if len(rows) > 1:
            rows.insert(0, BitsRow("all weights", self.histogram, _mean(self.histogram)))
        title = f"{self.bits_per_weight:.2f} bits per weight, with tables and ranges"
        if len(weights) < len(self.weights):
            title += f"\n{self._widths_text().rpartition('; ')[2]}"
        draw_bits(rows, path, title, "elements, per cent")


def inspect(path: str | os.PathLike[str]) -> PackedReport:
    """Report what a packed file holds. Header and width tables are verified; the levels are not read.

    Raises:
        PackedFileError: naming the file and the tensor. OSError: the file cannot be read.
    """
    path = os.fspath(path)
    with open_file(path) as file:
        return report_of(read_layout(file, path))


def report_of(layout: PackedLayout) -> PackedReport:
    """The report of a file whose header and width tables are read."""
    weights = tuple(_weight_report(layout, name) for name in layout.weights)
    sizes = _bytes_by_purpose(layout)
    float_bytes = sum(weight.count * ITEM_BYTES[weight.dtype] for weight in weights)
    for name in layout.plain:
        entry = layout.header.tensors[name]
        float_bytes += math.prod(entry.shape) * ITEM_BYTES[layout.half.get(name, entry.dtype)]
    path, size = layout.header.path, layout.header.file_bytes
    inputs = {
        name: {"bits": each.bits, "range": each.range, "step": each.step} for name, each in layout.activations.items()
    }
    return PackedReport(path, size, float_bytes, layout.quantizer, weights, sizes, layout.ties, inputs)


def _weight_report(layout: PackedLayout, name: str) -> WeightReport:
    weight, widths = layout.weights[name], layout.widths[name]
    levels = stream_levels(widths, weight.count, weight.group_size)
    histogram = {width: number for width, number in enumerate(levels) if number}
    parts = (layout.header.tensors.get(name + part) for part in layout.parts)
    size = sum(part.byte_count for part in parts if part)
    return WeightReport(
        name,
        weight.shape,
        weight.dtype,
        weight.group_size,
        weight.range_scope,
        weight.groups,
        histogram,
        size,
        "coded" if weight.coded else "fixed",
        None if weight.range_scope == STEPS else 4 * word_count(levels),
    )


def _coding_text(weight: WeightReport) -> str:
    if weight.coding == "fixed" or weight.fixed_bytes is None:
        return weight.coding
    return f"coded, {weight.fixed_bytes:,} fixed"


def _bytes_by_purpose(layout: PackedLayout) -> dict[str, int]:
    suffix = str(learned_suffix(layout.quantizer))
    sizes = dict.fromkeys(PURPOSES, 0)
    for name, entry in layout.header.tensors.items():
        sizes[_purpose(layout, name, suffix)] += entry.byte_count
    return sizes | {"header": layout.header.data_start}


def _purpose(layout: PackedLayout, name: str, suffix: str) -> str:
    """What a tensor is for; names are taken apart, since put together they could be longer than the file."""
    for part, purpose in zip(layout.parts, ("levels", "widths", "ranges", "levels"), strict=False):
        if name.endswith(part) and name.removesuffix(part) in layout.weights:
            return purpose
    if suffix and name.endswith(suffix) and name.removesuffix(suffix) in layout.weights:
        return "learned values"
    return "buffers" if name in layout.buffers else "plain parameters"


def _mean(histogram: Mapping[int, int]) -> float:
    return sum(width * number for width, number in histogram.items()) / max(sum(histogram.values()), 1)


def _span(histogram: Mapping[int, int]) -> str:
    if not histogram:
        return "-"
    lowest, highest = min(histogram), max(histogram)
    return str(lowest) if lowest == highest else f"{lowest}-{highest}"


def _histogram_text(histogram: Mapping[int, int]) -> str:
    total = sum(histogram.values())
    return ", ".join(f"{width}: {number / total:.1%}" for width, number in histogram.items()) or "none"


def _align(row: tuple[str, ...], spaces: list[int]) -> list[str]:
    """The first cell to the left, the others to the right."""
    return [
        cell.ljust(space) if not column else cell.rjust(space)
        for column, (cell, space) in enumerate(zip(row, spaces, strict=True))
    ]
