"""Draws the roofline of the GPU kernels from what is stored: predictions, and measurements once there are some.

python benchmarks/plot_gpu.py [--results FOLDER] [--chip NAME] [--output PNG] [--complete]

Left, each kernel at its instructions per byte, below the ceilings of copy and issue. Right, the predicted time of
each whole pass, with the measured time marked beside it where ``gpu_check.sh`` has left one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from gpu_chips import CHIPS, ISSUED, RESULTS, Chip

# Whole passes: the kernels that they launch, and under which name the benchmarks store their milliseconds.
PASSES = {
    "forward float32": (("range", "forward uniform g=8 to fp32"), "uniform"),
    "forward float32, Gaussian": (("range", "forward gaussian g=8 to fp32"), "gaussian"),
    "forward to bf16": (("range", "forward uniform g=8 to bf16"), "bf16"),
    "forward float32, one launch": (("one launch: forward uniform g=8 to fp32",), "one launch"),
    "forward to bf16, one launch": (("one launch: forward uniform g=8 to bf16",), "one launch, bf16"),
    "backward float32": (("backward uniform g=8 from fp32",), "backward"),
    "backward from bf16": (("backward uniform g=8 from bf16",), "backward bf16"),
    "quantise + pack, 4 bits": (("quantise + pack, 4 bits of one width",), "quantise + pack"),
    "unpack + dequantise, 4 bits": (("unpack + dequantise, 4 bits of one width",), "unpack + dequantise"),
}
BOUNDS = {
    "memory": ("tab:blue", "memory"),
    "issue": ("tab:orange", "instruction issue"),
    "ALU": ("tab:green", "comparisons and logic (ALU)"),
    "FMA": ("tab:olive", "products and sums (FMA)"),
    "integer products": ("tab:cyan", "integer products"),
    "XU": ("tab:red", "special functions (XU)"),
    "LSU": ("tab:purple", "loads, stores and shuffles (LSU)"),
    "latency": ("tab:brown", "latency"),
}
# Kernels under the ceilings: those of the passes, and some that cost more.
SHOWN = (
    *dict.fromkeys(kernel for kernels, _ in PASSES.values() for kernel in kernels),
    "forward uniform g=1 to fp32",
    "forward uniform g=8 to fp32, range per group",
    "backward uniform g=1 from fp32",
    "uniform noise of one step, g=64",
    "sums of uniform noise, g=64",
    "quantise + pack, 8 bits",
    "unpack + dequantise, 8 bits",
    "fake quantise",
)


def measured(folder: Path) -> tuple[str | None, dict[str, float]]:
    """The GPU, and picoseconds per weight by stored name; of several rows the first that has a name counts."""
    gpu, times = None, {}
    for path in (folder / "gpu_operators.json", folder / "gpu_export.json"):
        if not path.exists():
            continue
        stored = json.loads(path.read_text())
        gpu = stored["machine"]["gpu"]
        for row in stored["rows"]:
            for name, milliseconds in row.get("milliseconds", {}).items() if "weights" in row else ():
                times.setdefault(name, 1e9 * milliseconds / row["weights"])
    return gpu, times


def chip_named(gpu: str | None) -> str:
    """The chip of the predictions that ``gpu`` is; without one, that of the targets."""
    return next((name for name in CHIPS if gpu and name.split()[0] in gpu), "H200")


def draw_roofline(axes: Any, chip: Chip, kernels: list[dict[str, Any]], utilisation: float) -> None:
    """Attainable rate over instructions per byte, and where the kernels stand; ``utilisation``: of the issue slots."""
    issue = chip.rate(ISSUED) / 1e3
    intensity = np.geomspace(0.5, 20, 200)
    axes.plot(
        intensity, np.minimum(intensity * chip.copy, issue), color="0.7", lw=1.5, ls="--", label="every issue slot"
    )
    usable = utilisation * issue
    label = f"copy at {chip.copy} TB/s, {utilisation:.0%} of issue slots"
    axes.plot(intensity, np.minimum(intensity * chip.copy, usable), color="black", lw=2, label=label)
    places = sorted(kernels, key=lambda row: row["instructions_per_weight"] / row["bytes_per_weight"])
    for number, row in enumerate(places, 1):
        x = row["instructions_per_weight"] / row["bytes_per_weight"]
        y = row["instructions_per_weight"] / row["predicted_picoseconds"]
        axes.plot(x, y, "o", color=BOUNDS[row["binding"]][0], ms=7)
        height, side = (0.72, "top") if number % 2 else (1.4, "bottom")
        line = {"arrowstyle": "-", "lw": 0.5, "shrinkB": 4}
        axes.annotate(str(number), (x, y), (x, y * height), ha="center", va=side, fontsize=9, arrowprops=line)
        axes.plot([], [], " ", label=f"{number:>2}  {row['kernel']}")
    axes.set(xscale="log", yscale="log", xlabel="instructions per byte", ylabel="10¹² lane-instructions per second")
    axes.set_xlim(0.9, 12)
    axes.set_ylim(2, 50)
    ticks = [1, 2, 5, 10]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    axes.set_title("Kernels under the ceilings (predicted)")


def draw_passes(axes: Any, kernels: list[dict[str, Any]], times: dict[str, float]) -> None:
    """Bars of predicted picoseconds per weight, coloured by what bounds each kernel; measurements as marks."""
    by_name = {row["kernel"]: row for row in kernels}
    for place, (names, stored) in enumerate(PASSES.values()):
        left = 0.0
        for name in names:
            row = by_name[name]
            width = row["predicted_picoseconds"]
            axes.barh(place, width, left=left, height=0.6, color=BOUNDS[row["binding"]][0], edgecolor="white")
            left += width
        text = f"{left:.2f}"
        if stored in times:
            axes.plot(times[stored], place, "kD", ms=7)
            text += f", measured {times[stored]:.2f}"
        axes.text(max(left, times.get(stored, 0.0)) + 0.06, place, text, va="center", fontsize=9)
    found = {row["binding"] for row in kernels}
    for bound, (colour, meaning) in BOUNDS.items():
        if bound in found:
            axes.plot([], [], "s", color=colour, label=f"bound by {meaning}")
    axes.plot([], [], "kD", label="measured" if times else "measured: nothing yet")
    axes.set_yticks(range(len(PASSES)), PASSES)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(axes.get_xlim()[1], *times.values(), 0.0))
    axes.set_xlabel("picoseconds per weight")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=2, frameon=False)
    axes.set_title("Whole passes, g = 8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--chip", choices=CHIPS, help="default: the measured GPU, or H200")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent.parent / "docs" / "figures" / "gpu_roofline.png"
    )
    parser.add_argument("--complete", action="store_true", help="fail where a pass was not measured")
    arguments = parser.parse_args()
    predictions = json.loads((RESULTS / "gpu_predictions.json").read_text())
    gpu, times = measured(arguments.results)
    chip = arguments.chip or chip_named(gpu)
    kernels = predictions["chips"][chip]["kernels"]
    missing = {stored for _, stored in PASSES.values()} - times.keys()
    if arguments.complete and missing:
        parser.error(f"{arguments.results}: expected times of all passes, found none of {sorted(missing)}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 7.5), width_ratios=(1.15, 1))
    shown = [row for row in kernels if row["kernel"] in SHOWN]
    draw_roofline(left, CHIPS[chip], shown, predictions["utilisation"])
    draw_passes(right, kernels, times)
    source = f"measured on {gpu}" if gpu else "nothing measured yet"
    predicted = f"predicted from compiled code (Triton {predictions['triton']})"
    figure.suptitle(f"diffq_fast's GPU kernels on {chip}: {predicted}, {source}")
    figure.tight_layout()
    figure.savefig(arguments.output, dpi=110)
    print(arguments.output)


if __name__ == "__main__":
    main()
