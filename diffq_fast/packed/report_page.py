"""A packed file as one HTML page that needs nothing else: no network.

The page is well-formed XML. Its script does nothing but sort the table; everything is there without it. Of weights with
steps alone levels are read, with torch: the page shows the bits that the largest level of each group needs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np

from .._version import __version__
from ..files.atomic_file import atomic_file, check_output
from ..files.safetensors_reader import open_file, printable
from ..reference.sizes import MAX_WIDTH, word_count
from .layout import STEPS, PackedLayout, read_layout
from .page_style import SCRIPT, STYLE
from .report import PURPOSES, PackedReport, WeightReport, report_of

MOST_CELLS = 64  # of the picture of a weight's widths in the order of its groups
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
HEADS = (
    ("weight", False), ("shape", False), ("elements", True), ("group", True), ("bits per<br/>weight", True),
    ("widths", True), ("bytes", True), ("of the<br/>file", True),
)  # fmt: skip
CODED_HEADS = (("coding", False), ("levels<br/>coded", True), ("levels<br/>at widths", True))


def write_page(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Write the page of a packed file, all or nothing.

    Raises:
        PackedFileError: the file is damaged. ValueError: the output is the file itself, or no regular file.
    """
    check_output("inspect", output, path)
    text = html_page(path)
    with atomic_file(output) as page:
        page.write(text.encode("utf-8"))


def html_page(path: str | os.PathLike[str]) -> str:
    """The page as text; names from the file are escaped, and without control characters.

    Raises:
        PackedFileError: the file is damaged.
    """
    path = os.fspath(path)
    with open_file(path) as file:
        layout = read_layout(file, path)
    stepped = [name for name, weight in layout.weights.items() if weight.range_scope == STEPS]
    layout = replace(layout, widths=layout.widths | _least_widths(path, stepped))
    report = report_of(layout)
    report = replace(report, weights=tuple(map(_at_widths, report.weights)))
    name = _text(os.path.basename(report.path))
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>{name}: what it holds</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f"<h1>{name}</h1>\n<p>{_quantizer_text(report.quantizer)}</p>",
        _tiles(report),
        f'<div class="pair">{_purposes(report)}{_histogram(report)}</div>',
        _coded_against_fixed(layout, report),
        _weights(layout, report),
        _ties(report.ties),
        f"<footer>Made by diffq-fast {__version__}.</footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _least_widths(path: str, names: Collection[str]) -> dict[str, np.ndarray]:
    """The fewest bits that hold the levels of each group, of weights with steps."""
    if not names:
        return {}
    from .coding import CodedTensor
    from .contents import read_packed

    contents = read_packed(path, names=names)
    widths = {}
    for name in names:
        weight = contents.packed[name]
        with contents.naming(name):
            if isinstance(weight, CodedTensor):
                widths[name] = weight.least_widths().numpy()
    return widths


def _at_widths(weight: WeightReport) -> WeightReport:
    """The same with what its levels would take at its widths, where it has steps: of the least ones."""
    if not weight.has_steps:
        return weight
    levels = [weight.histogram.get(width, 0) for width in range(MAX_WIDTH + 1)]
    return replace(weight, fixed_bytes=4 * word_count(levels))


def coded_bytes(layout: PackedLayout, name: str) -> int | None:
    """What a weight's coded levels take; None where they are not coded."""
    entry = layout.header.tensors.get(name + ".coded")
    return entry.byte_count if entry is not None and layout.weights[name].coded else None


def _text(name: str) -> str:
    return escape(printable(name))


def _quantizer_text(quantizer: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in quantizer["arguments"].items())
    kind = "no quantizer" if quantizer["class"] == "none" else str(quantizer["class"])
    return _text(f"Packed file of diffq_fast, {kind}" + (f" ({arguments})" if arguments else ""))


def _tiles(report: PackedReport) -> str:
    count = sum(weight.count for weight in report.weights)
    tiles = (
        (_size(report.file_bytes), "the file"),
        (_size(report.float_bytes), "unpacked"),
        (f"{report.float_bytes / report.file_bytes:.2f} ×", "smaller than unpacked"),
        (f"{report.bits_per_weight:.2f}", "bits per weight, all told"),
        (f"{count:,}", f"elements in {_plural(len(report.weights), 'packed weight')}"),
    )
    drawn = "".join(f'<div class="tile"><b>{number}</b><span>{what}</span></div>' for number, what in tiles)
    return f'<div class="tiles">{drawn}</div>'


def _purposes(report: PackedReport) -> str:
    """A bar of the file's bytes, divided by what they are for, and the same as a table."""
    sizes = [(index, purpose, report.bytes_by_purpose.get(purpose, 0)) for index, purpose in enumerate(PURPOSES)]
    bar = _stack(
        (f"p{index}", size / report.file_bytes, f"{purpose}: {size:,} bytes") for index, purpose, size in sizes
    )
    rows = [
        f'<tr><td><span class="dot p{index}"></span>{purpose}</td>'
        f'<td class="number">{size:,}</td><td class="number">{size / report.file_bytes:.1%}</td></tr>'
        for index, purpose, size in sizes
        if size
    ]
    total = f'<tr><td>in all</td><td class="number">{report.file_bytes:,}</td><td class="number">100%</td></tr>'
    return f'<section><h2>Bytes by purpose</h2>{bar}<table class="bars">{"".join(rows)}{total}</table></section>'


def _histogram(report: PackedReport) -> str:
    """Columns of the elements by width."""
    widths: dict[int, int] = {}
    for weight in report.weights:
        for width, number in weight.histogram.items():
            widths[width] = widths.get(width, 0) + number
    stepped = sum(weight.has_steps for weight in report.weights)
    total = sum(widths.values())
    if not total:
        return "<section><h2>Elements by width</h2><p>No weight is packed.</p></section>"
    note = (
        f"Of {_plural(stepped, 'weight')} with steps: the bits that the largest level of each group needs."
        if stepped
        else ""
    )
    shares = {width: widths.get(width, 0) / total for width in range(min(widths), max(widths) + 1)}
    most = max(shares.values())
    columns = "".join(
        f'<div class="column" title="{widths.get(width, 0):,} elements"><span>{_percent(share)}</span>'
        f'<i class="w{width}" style="height: {78 * share / most:.1f}%"></i><b>{width}</b></div>'
        for width, share in shares.items()
    )
    words = f"<p>Bits of a level, and the share of the elements. {note}</p>"
    return f'<section><h2>Elements by width</h2>{words}<div class="columns">{columns}</div></section>'


def _coded_against_fixed(layout: PackedLayout, report: PackedReport) -> str:
    """What the levels of coded weights take, and what they would take at their widths."""
    both = [(coded_bytes(layout, each.name), each.fixed_bytes) for each in report.weights]
    pairs = [(coded, fixed) for coded, fixed in both if coded is not None and fixed]
    if not pairs:
        return ""
    stepped = any(each.has_steps for each in report.weights)
    note = "Coded bytes hold the steps too, those at fixed widths do not." if stepped else ""
    coded, fixed = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    most = max(coded, fixed)
    rows = "".join(
        f'<tr><td>{name}</td><td class="track">{_stack([("bar", size / most, name)])}</td>'
        f'<td class="number">{size:,} bytes</td></tr>'
        for name, size in (("coded", coded), ("at fixed widths", fixed))
    )
    words = f"<p>Levels of {_plural(len(pairs), 'coded weight')}: {coded / fixed:.1%} of fixed widths. {note}</p>"
    return f'<section><h2>Coded against fixed widths</h2>{words}<table class="bars">{rows}</table></section>'


def _weights(layout: PackedLayout, report: PackedReport) -> str:
    coded = any(weight.coding != "fixed" for weight in report.weights)
    heads = "".join(
        f'<th scope="col"{_class("number" if numeric else "")}><button type="button">{name}</button></th>'
        for name, numeric in HEADS + (CODED_HEADS if coded else ())
    )
    rows = "\n".join(_row(layout, report, weight, coded) for weight in report.weights)
    used = sorted({width for each in report.weights for width in each.histogram})
    key = "".join(f'<span><span class="dot w{width}"></span>{_plural(width, "bit")}</span>' for width in used)
    words = (
        "<p>The upper bar has the shares of the widths, the lower one the widths along the groups, first to last.</p>"
    )
    table = f'<table class="weights"><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table>'
    return f'<section><h2>Weights</h2>{words}<div class="key">{key}</div><div class="wide">{table}</div></section>'


def _row(layout: PackedLayout, report: PackedReport, weight: WeightReport, coded: bool) -> str:
    """One weight, with the columns of `coded` files or without; what a cell is sorted by stands in its data-value."""
    group = weight.group_size or weight.count
    widths = sum(width * number for width, number in weight.histogram.items()) / max(weight.count, 1)
    cells: tuple[tuple[object, str, str], ...] = (
        (weight.name, _text(weight.name).replace(".", ".<wbr/>"), "name"),
        ("x".join(map(str, weight.shape)), " × ".join(map(str, weight.shape)) or "scalar", ""),
        (weight.count, f"{weight.count:,}", "number"),
        (group, f"{weight.group_size:,}" if weight.group_size else "all", "number"),
        (weight.bits_per_weight, f"{weight.bits_per_weight:.2f}", "number"),
        (widths, _shares(layout, weight), "shares"),
        (weight.bytes, f"{weight.bytes:,}", "number"),
        (weight.bytes, f"{weight.bytes / report.file_bytes:.1%}", "number"),
    )
    if coded:
        sizes = coded_bytes(layout, weight.name), weight.fixed_bytes
        cells += ((weight.coding, "steps, coded" if weight.has_steps else weight.coding, ""),)
        cells += tuple((-1, "–", "number") if size is None else (size, f"{size:,}", "number") for size in sizes)
    return f"<tr>{''.join(map(_cell, cells))}</tr>"


def _cell(cell: tuple[object, str, str]) -> str:
    value, content, kind = cell
    sorted_by = _text(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    return f'<td data-value="{sorted_by}"{_class(kind)}>{content}</td>'


def _shares(layout: PackedLayout, weight: WeightReport) -> str:
    """The shares of a weight's widths, and its widths along the groups."""
    if not weight.count:
        return "–"
    shares = (
        (f"w{width}", number / weight.count, f"{width}: {number:,}") for width, number in weight.histogram.items()
    )
    bar = _stack(shares)
    if weight.groups == 1:
        return bar
    cells = mean_widths(layout.widths[weight.name])
    drawn = "".join(
        f'<rect x="{place}" y="0" width="1.05" height="1" class="w{round(cell)}"/>' for place, cell in enumerate(cells)
    )
    box = f'viewBox="0 0 {len(cells)} 1" preserveAspectRatio="none"'
    return f'{bar}<svg {box} role="img" aria-label="widths along the groups">{drawn}</svg>'


def mean_widths(widths: np.ndarray) -> list[float]:
    """The mean widths of up to 64 runs of a weight's groups, each as long as the others to one."""
    ends = np.linspace(0, len(widths), min(len(widths), MOST_CELLS) + 1).astype(np.int64)
    sums = np.add.reduceat(widths.astype(np.int64), ends[:-1]) if len(widths) else np.empty(0)
    return (sums / np.diff(ends)).tolist()


def _stack(parts: Iterable[tuple[str, float, str]]) -> str:
    """A bar, divided: the class of each part, its share of 1, and what it says when pointed at."""
    drawn = "".join(
        f'<i class="{name}" style="width: {100 * share:.3f}%" title="{text}"></i>'
        for name, share, text in parts
        if share
    )
    return f'<div class="stack">{drawn}</div>'


def _ties(ties: Mapping[str, str]) -> str:
    if not ties:
        return ""
    rows = "".join(f"<tr><td>{_text(alias)}</td><td>= {_text(name)}</td></tr>" for alias, name in ties.items())
    return f'<section><h2>Tied names</h2><table class="bars">{rows}</table></section>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return "0" if not share else "&lt;0.1%" if share < 0.001 else f"{share:.1%}"


def _size(size: int) -> str:
    return f"{size / 2**20:.2f} MB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KB"
