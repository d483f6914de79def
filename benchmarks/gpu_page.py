"""Writes the tables of ``docs/gpu.md`` anew from what is stored: ``python benchmarks/gpu_page.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_chips import CHIPS, RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
VERSIONS = ("3.6.0", "3.9.0")
# The figures that have targets: what is shown, its name among the predictions, ship and moonshot.
FIGURES = [
    ("G1", "forward float32 uniform, 12 B/w over copy", "G1", "≥ 0.85", "0.93"),
    ("G1", "the same in one launch, 8 B/w over copy", "G1 one launch", "", "0.85"),
    ("G2", "forward to bf16, 10 B/w over copy", "G2", "≥ 0.80", ""),
    ("G2", "the same in one launch, 6 B/w over copy", "G2 one launch", "", "0.80"),
    ("G3", "Gaussian over uniform, time of the forward", "G3", "≤ 1.25", "1.05"),
    ("G4", "backward float32, 8 B/w over copy", "G4", "≥ 0.75", "0.90"),
    ("G4", "backward from bf16 gradients, 6 B/w over copy", "G4 bf16", "≥ 0.75", "0.90"),
    ("G8", 'step under autocast over plain, %, noisy_dtype="auto"', "G8", "≤ 2", "0.5"),
    ("G8", "the same with noisy weights in float32", "G8 own dtype", "", ""),
    ("G11", "quantise + pack, 4 bits, over copy", "G11 pack", "≥ 0.75", "0.90"),
    ("G11", "unpack + dequantise, 4 bits, over copy", "G11 unpack", "≥ 0.75", "0.90"),
]
SHOWN_CHIPS = ("H100 SXM", "H200", "B200")  # of the table of kernels


def stored(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def static_rows() -> list[list[str]]:
    first, second = (stored(f"static_triton_{version}.json")["rows"] for version in VERSIONS)
    others = {row["kernel"]: row for row in second}
    rows = []
    for row in first:
        name, cost = row["kernel"], row["instructions_per_weight"]
        other = others[name]
        costs = [f"{cost:.2f}", f"{other['instructions_per_weight']:.2f}", row["budget"]]
        registers = [str(row["registers"]), str(other["registers"])]
        rows.append([name, *costs, *registers, str(row["stack_bytes"] + other["stack_bytes"])])
    return rows


def figure_rows() -> list[list[str]]:
    chips = stored("gpu_predictions.json")["chips"]
    return [
        [figure, what, *(f"{chips[chip]['figures'][name]:.3f}" for chip in CHIPS), ship, moonshot]
        for figure, what, name, ship, moonshot in FIGURES
    ]


def kernel_rows() -> list[list[str]]:
    chips = stored("gpu_predictions.json")["chips"]
    by_name = {chip: {row["kernel"]: row for row in chips[chip]["kernels"]} for chip in SHOWN_CHIPS}
    rows = []
    for name, on_h200 in by_name["H200"].items():
        cells = [f"{on_h200['bytes_per_weight']:g}", str(on_h200["resident_programs"])]
        cells.append(f"{on_h200['kilobytes_in_flight']:.0f}")
        for chip in SHOWN_CHIPS:
            own = by_name[chip][name]
            cells += [f"{own['predicted_picoseconds']:.2f}", own["binding"]]
        rows.append([name, *cells, f"{on_h200['of_copy']:.2f}"])
    return rows


def small_rows() -> list[list[str]]:
    small = stored("gpu_predictions.json")["chips"]["H200"]["small"]
    return [[row["pass"], *(f"{time:.1f}" for time in row["microseconds"].values())] for row in small]


def lowered_rows() -> list[list[str]]:
    """What was predicted on an H200 before a kernel was changed, and now."""
    now = {row["kernel"]: row for row in stored("gpu_predictions.json")["chips"]["H200"]["kernels"]}
    return [
        [
            before["kernel"],
            *(f"{each['instructions_per_weight']:.1f}" for each in (before, now[before["kernel"]])),
            *(
                cell
                for each in (before, now[before["kernel"]])
                for cell in (f"{each['predicted_picoseconds']:.2f}", each["binding"], f"{each['of_copy']:.2f}")
            ),
        ]
        for before in stored("gpu_predictions_before.json")["rows"]
    ]


# Each table by the beginning of its first line.
TABLES = {
    "| kernel | instructions, 3.6.0 |": static_rows,
    "| figure | what | H100 SXM |": figure_rows,
    "| kernel | bytes | resident |": kernel_rows,
    "| kernel, H200 | instructions before |": lowered_rows,
    "| pass over one weight, H200 |": small_rows,
}


def with_rows(page: str, heading: str, rows: list[list[str]]) -> str:
    """The page with the rows below a heading and its rule put in place of those that stand there."""
    begin = page.index("\n", page.index("\n", page.index(heading)) + 1) + 1
    end = begin
    while page.startswith("|", end):
        end = page.index("\n", end) + 1
    return page[:begin] + "".join(f"| {' | '.join(row)} |\n" for row in rows) + page[end:]


def main() -> None:
    page = PAGE.read_text()
    for heading, rows in TABLES.items():
        page = with_rows(page, heading, rows())
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
