"""One plot per task: size against quality."""

from pathlib import Path

import matplotlib

from .summary import Result
from .task import Task

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLES = {  # colour, marker, name
    "ptq": ("tab:gray", "s", "uniform, after training"),
    "qat": ("tab:orange", "^", "QAT, straight through"),
    "lsq": ("tab:purple", "D", "LSQ"),
    "diffq": ("tab:blue", "o", "DiffQ, penalty"),
    "target": ("tab:green", "*", "DiffQ, SizeTarget"),
    "rate": ("tab:red", "P", "coded sizes, SizeTarget"),
    "packed": ("tab:brown", "X", "coded sizes, packed half-way"),
    "taught packed": ("tab:pink", "X", "the same with a teacher"),
    "taught target": ("tab:olive", "*", "DiffQ, SizeTarget, with a teacher"),
}
SHOWN = 8  # times the aim, below float32: what is worse is marked at the lower edge


def plot(task: Task, results: list[Result], path: Path) -> None:
    """Mean differences from float32 with their intervals; hollow: one seed. The line is float32, the band the aim."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    plain = next(found for found in results if found.kind == "float32")
    axes.axhline(0, color="black", linewidth=1, label=f"float32, {plain.megabytes:.2f} MB")
    axes.axhspan(-task.aim, task.aim, color="black", alpha=0.07)
    floor = -SHOWN * task.aim
    for height, (kind, (colour, marker, name)) in enumerate(STYLES.items()):
        several = [found for found in results if found.kind == kind and found.seeds > 1]
        for found in several:
            at = max(found.difference, floor)
            axes.errorbar(
                found.times_smaller, at, yerr=spread(found, at), color=colour, marker=marker, markersize=7, capsize=2
            )
            if found.difference < floor:
                offset = {"xytext": (4, 4 + 10 * height), "textcoords": "offset points", "ha": "right"}
                said = f"{found.difference:.3g}"
                axes.annotate(said, (found.times_smaller, at), color=colour, fontsize="small", **offset)
        if several:
            line = sorted((found.times_smaller, max(found.difference, floor)) for found in several)
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=0.8, marker=marker, label=name)
        once = [(f.times_smaller, max(f.difference, floor)) for f in results if f.kind == kind and f.seeds == 1]
        if once:
            axes.plot(*zip(*once, strict=True), color=colour, marker=marker, mfc="none", linestyle="", alpha=0.6)
    axes.set(xscale="log", xlabel="times smaller than float32", ylabel=f"against float32, {task.difference_unit}")
    ticks = [4, 6, 8, 10, 12, 16, 24, 32]
    axes.set_xticks(ticks, [str(each) for each in ticks], minor=False)
    axes.minorticks_off()
    axes.set_title(f"{task.name}: float32 has {task.metric.split(',')[0]} {plain.quality:.2f}")
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def spread(found: Result, at: float) -> list[list[float]]:
    """The interval as lengths below and above; none where the point lies off the plot."""
    low, high = found.interval if at == found.difference else (at, at)
    return [[max(0.0, at - low)], [max(0.0, high - at)]]
