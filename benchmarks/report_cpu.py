"""A table of the CPU targets (Markdown) and a roofline plot (PNG) from a stored JSON file.

python benchmarks/report_cpu.py results/cpu_<machine>.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def _ratio(row: dict[str, Any], slow: str, fast: str) -> float | None:
    return row[slow]["median"] / row[fast]["median"] if slow in row and fast in row else None


def _of_copy(row: dict[str, Any], name: str) -> float:
    """Bandwidth as a fraction of the copy's."""
    copy, mine = row["copy_"], row[name]
    return mine["bytes"] / mine["median"] / (copy["bytes"] / copy["median"])


def targets(results: dict[str, Any]) -> list[tuple[str, str, float | None, str]]:
    """(id, what, measured, ship / moonshot) at g = 8."""
    rows: list[tuple[str, str, float | None, str]] = []
    if "training" in results:
        forward, step = results["training"]["forward g=8 warm"], results["training"]["step g=8 warm"]
        rows += [
            ("C1", "noise forward against diffq", _ratio(forward, "diffq uniform", "diffq_fast uniform"), "15 / 30"),
            ("C2", "forward + backward against diffq", _ratio(step, "diffq", "diffq_fast"), "20 / 40"),
            ("C3", "Gaussian over uniform", _ratio(forward, "diffq_fast gaussian", "diffq_fast uniform"), "1.6 / 1.15"),
            ("C4", "forward bytes over copy", _of_copy(forward, "diffq_fast uniform"), "0.35 / 0.8"),
        ]
    if "export" in results:
        export = results["export"]
        rows += [
            ("C5", "packed state against diffq", _ratio(export["state g=8"], "diffq", "diffq_fast"), "20 / 60"),
            ("C6", "save against torch.save of diffq's", _ratio(export["save g=8"], "diffq", "diffq_fast"), "15 / 40"),
        ]
    for verb in ("pack", "unpack") if "planes" in results else ():
        row = results["planes"][f"planes 8 bits {verb}"]
        rows.append(("C7", f"bitpack.{verb}, 8 bits, one thread", _ratio(row, "diffq", "diffq_fast"), "15 / 40"))
    for widths in ("8 bits", "mixed") if "export" in results else ():
        row = results["export"][f"words g=8 {widths}"]
        rows.append(("C8", f"unpack + dequantise over copy, {widths}", _of_copy(row, "unpack_dequantize"), "0.5 / 0.9"))
    for row in results.get("eval", {}).values():
        rows.append(("C9", "eval forward over plain", _ratio(row, "diffq_fast", "plain"), "1.05 / 1.01"))
    if "scaling" in results:
        rows.append(("C10", "time per weight, largest over 2^24", _growth(results["scaling"]), "linear: 1"))
    for name, measured in results.get("memory", {}).items():
        allowed = 4 + 16 / int(name.removeprefix("g="))
        rows.append(("C10", f"extra bytes per weight of a step, {name}", measured, f"{allowed:g}"))
    return rows


def _growth(scaling: dict[str, Any]) -> float:
    """A forward's time per weight at the most weights measured, over that at 2^24, on all threads."""
    sizes = {}
    for row, variants in scaling.items():
        kind, size, threads, _ = row.split()
        if kind == "forward" and int(threads) > 1:
            exponent = int(size.removeprefix("2^"))
            sizes[exponent] = variants["diffq_fast uniform"]["median"] / 2**exponent
    return sizes[max(sizes)] / sizes[min(24, max(sizes))]


def table(stored: dict[str, Any]) -> str:
    """Markdown: the targets, then millions of weights a second of every row."""
    lines = ["| id | figure | measured | ship / moonshot |", "|---|---|---|---|"]
    for name, what, measured, wanted in targets(stored["results"]):
        lines.append(f"| {name} | {what} | {'–' if measured is None else f'{measured:.2f}'} | {wanted} |")
    lines += ["", "| row | variant | M weights/s | ms | CPU ms |", "|---|---|---|---|---|"]
    count = stored["results"]["count"]
    for part in ("training", "export", "planes"):
        for row, variants in stored["results"].get(part, {}).items():
            for name, measured in variants.items():
                speed = count / measured["median"] / 1e6
                wall, cpu = measured["median"] * 1e3, measured["cpu"] * 1e3
                lines.append(f"| {row} | {name} | {speed:,.0f} | {wall:.2f} | {cpu:.2f} |")
    for row, variants in stored["results"].get("scaling", {}).items():
        size = 2 ** int(row.split()[1].removeprefix("2^"))
        for name, measured in variants.items():
            wall, cpu = measured["median"] * 1e3, measured["cpu"] * 1e3
            lines.append(f"| {row} | {name} | {size / measured['median'] / 1e6:,.0f} | {wall:.3f} | {cpu:.3f} |")
    return "\n".join(lines) + "\n"


COLOURS = {"diffq_fast": "tab:green", "diffq": "tab:red", "torch.compile": "tab:blue"}


def _points(stored: dict[str, Any]) -> list[tuple[str, str, float, float]]:
    """(package, label, bytes per weight, millions of weights a second) of the rows at g = 8, warm."""
    points, count = [], stored["results"]["count"]
    for part in ("training", "export"):
        for row, variants in stored["results"].get(part, {}).items():
            if "g=8" not in row or "cold" in row:
                continue
            for name, measured in variants.items():
                if name == "copy_" or not measured["bytes"]:
                    continue
                package = next(
                    (each for each in ("torch.compile", "diffq_fast", "diffq") if each in name), "diffq_fast"
                )
                detail = name.removeprefix(package).strip().replace("max-autotune-no-cudagraphs", "max-autotune")
                label = f"{row.replace(' g=8', '').replace(' warm', '')} {detail}".replace("words ", "")
                points.append((package, label.strip(), measured["bytes"] / count, count / measured["median"] / 1e6))
    return points


def plot(stored: dict[str, Any], path: Path) -> None:
    """Speed of each pass against the bytes that it cannot avoid, under the copy's bandwidth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    roof = max(
        measured["bytes"] / measured["median"]
        for part in ("training", "export")
        for variants in stored["results"].get(part, {}).values()
        for name, measured in variants.items()
        if name == "copy_"
    )
    span = [4.0, 30.0]
    axes.loglog(span, [roof / each / 1e6 for each in span], "k--", label="at the copy's bandwidth")
    heights: dict[float, list[float]] = {}
    for package, label, moved, speed in sorted(_points(stored), key=lambda point: -point[3]):
        axes.plot(moved, speed, "o", color=COLOURS[package])
        height = min([speed, *(below / 1.13 for below in heights.get(moved, []))])  # below the label above it
        heights.setdefault(moved, []).append(height)
        axes.annotate(label, (moved * 1.03, height), fontsize=7, va="center", color=COLOURS[package])
    for package, colour in COLOURS.items():
        axes.plot([], [], "o", color=colour, label=package)
    axes.set_xticks([4, 6, 8, 12, 20, 30], [4, 6, 8, 12, 20, 30])
    axes.minorticks_off()
    axes.set_xlabel("bytes of memory traffic per weight that cannot be avoided")
    axes.set_ylabel("million weights a second")
    machine = stored["machine"]
    axes.set_title(f"{machine['processor']}, {machine['threads']} threads, {machine['instruction_set']}, groups of 8")
    axes.legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    source = Path(sys.argv[1])
    stored = json.loads(source.read_text())
    text = table(stored)
    source.with_suffix(".md").write_text(text)
    plot(stored, source.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
