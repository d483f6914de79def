"""Tables and the plot of the MiniLM experiments: packing after training, training, other formats at their sizes."""

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import matplotlib
import mnist_claim
import numpy as np

from .store import paths_of
from .tables import put

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE, FIGURE = Path("docs/experiments.md"), Path("docs/figures/experiment_minilm.png")
SHORT_PAGE = Path("docs/post_training.md")
STYLES = {
    "fixed width, range per tensor": ("tab:gray", "s"),
    "GGUF": ("tab:orange", "^"),
    "HQQ": ("tab:purple", "D"),
    "quanto": ("tab:olive", "v"),
    "torchao": ("tab:brown", "v"),
    "NNCodec": ("tab:pink", "P"),
    "coded": ("tab:cyan", "o"),
    "coded, calibrated": ("tab:blue", "o"),
    "LSQ": ("black", "x"),
    "QAT": ("black", "+"),
    "DiffQ": ("black", "1"),
    "HQQ, then QAT": ("black", "2"),
    "trained, from float": ("tab:green", "*"),
    "trained, from packed": ("tab:red", "*"),
}
OURS = ("coded", "coded, calibrated", "trained, from float", "trained, from packed")
Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    """The stored rows of one experiment, and those that other machines added; none if it has not run."""
    paths = takewhile(Path.exists, paths_of(name))
    return [row for path in paths for row in json.loads(path.read_text())["rows"]]


def post_training_table(rows: list[Row]) -> str:
    """One line for each packing, methods together, by size."""
    lines = ["| method, bits asked for | bits on disk | Spearman | top 1 | recall at 10 | quality, dB |"]
    lines.append("|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["method"], row["bits"])):
        quality = f"{row['quality_db']:.1f}" if "quality_db" in row else ""
        lines.append(f"| {row['label']} | {row['bits']:.3f} | {scores(row)} | {quality} |")
    return "\n".join(lines)


def training_table(rows: list[Row]) -> str:
    """One line for each training: quality, and whether the sizes are what was asked for."""
    lines = ["| start, bits asked for, steps | bits on disk | Spearman | top 1 | recall at 10 |"]
    lines[0] += " file / asked | file / `true_model_size()` | `model_size()` / `true_model_size()` | processor, s |"
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["method"], row["bits"])):
        disk = row["bytes"] / 2**20
        ratios = (row["bits"] / row["asked"], disk / row["mb"], row["estimated_mb"] / row["mb"])
        cells = " | ".join(f"{each:.4f}" for each in ratios)
        lines.append(
            f"| {row['label']} | {row['bits']:.3f} | {scores(row)} | {cells} | {row['processor_seconds']:.0f} |"
        )
    return "\n".join(lines)


def peer_table(peers: list[Row], ours: list[Row]) -> str:
    """Every peer beside the best of our rows that is no larger than it, without and with calibration or training."""
    lines = ["| format | bits on disk | Spearman | recall at 10 | ours, no larger | bits on disk | Spearman | |"]
    lines[0] += " difference over sentences (95 % interval) |"
    lines[0] = lines[0].replace(" | | difference", " | difference")
    lines.append("|---|---|---|---|---|---|---|---|")
    for peer in sorted(peers, key=lambda row: row["bits"]):
        head = f"| {peer['label']} | {peer['bits']:.3f} | {peer['spearman']:.4f} | {100 * peer['recall10']:.1f} % "
        rivals = [max(found, key=lambda row: row["spearman"]) for found in _no_larger(ours, peer)]
        if not rivals:
            lines.append(f"{head}| none so small | | | |")
        for ours_best in rivals:
            cells = f"{ours_best['label']} | {ours_best['bits']:.3f} | {ours_best['spearman']:.4f}"
            lines.append(f"{head}| {cells} | {paired(ours_best, peer)} |")
            head = "| | | | "
    return "\n".join(lines)


def trained_table(rows: list[Row], ours: list[Row]) -> str:
    """Every method in so many steps beside the best of RateQuantizer's trainings in as many that is no larger."""
    lines = ["| method | bits on disk | Spearman | top 1 | recall at 10 | RateQuantizer, as many steps, no larger |"]
    lines[0] += " bits on disk | Spearman | difference over sentences (95 % interval) | processor, s |"
    lines.append("|---" * 10 + "|")
    for row in sorted(rows, key=lambda row: (row["steps"], row["bits"])):
        fits = [each for each in ours if each["steps"] == row["steps"] and each["bits"] <= row["bits"]]
        cells = "none so small | | |"
        if fits:
            best = max(fits, key=lambda each: each["spearman"])
            cells = f"{best['label']} | {best['bits']:.3f} | {best['spearman']:.4f} | {paired(best, row)}"
        lines.append(
            f"| {row['label']} | {row['bits']:.3f} | {scores(row)} | {cells} | {row['processor_seconds']:.0f} |"
        )
    return "\n".join(lines)


def _no_larger(ours: list[Row], peer: Row) -> list[list[Row]]:
    fits = [row for row in ours if row["bits"] <= peer["bits"]]
    kinds = [[row for row in fits if (row["method"] == "coded") == plain] for plain in (True, False)]
    return [found for found in kinds if found]


def short_table(rows: list[Row]) -> str:
    """All methods by size."""
    lines = ["| | bits on disk | Spearman | recall at 10 |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["bits"]):
        ours = row["method"] in OURS
        label = f"**{row['label']}**" if ours else row["label"]
        lines.append(f"| {label} | {row['bits']:.3f} | {row['spearman']:.4f} | {100 * row['recall10']:.1f} % |")
    return "\n".join(lines)


def paired(ours: Row, peer: Row) -> str:
    """The mean difference of the correlations of each sentence, drawn anew for its interval."""
    differences = (np.array(ours["scores"]) - np.array(peer["scores"]))[None]
    low, high = mnist_claim.bootstrap_interval(differences)
    return f"{differences.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def scores(row: Row) -> str:
    """Three cells."""
    return f"{row['spearman']:.4f} | {100 * row['top1']:.1f} % | {100 * row['recall10']:.1f} %"


def plot(rows: list[Row]) -> None:
    """Bits on disk against Spearman's correlation, by method."""
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for method, (colour, marker) in STYLES.items():
        points = sorted((row["bits"], 1 - row["spearman"]) for row in rows if row["method"] == method)
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=0.8, label=method)
    axes.set(xlabel="bits on disk per weight, all told", ylabel="1 - Spearman (lower is better)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(FIGURE, dpi=130)
    plt.close(figure)


def put_tables() -> None:
    """Into the docs, from what is stored."""
    packed, trained, peers = (rows_of(name) for name in ("post_training", "rate_minilm", "minilm_peers"))
    others = rows_of("minilm_trained")
    if packed:
        put(PAGE, "post_training", post_training_table(packed))
    if trained:
        put(PAGE, "rate_minilm", training_table(trained))
    if peers:
        put(PAGE, "minilm_peers", peer_table(peers, [row for row in packed + trained if row["method"] in OURS]))
    if others:
        put(PAGE, "minilm_trained", trained_table(others, trained))
    if packed and peers:
        put(SHORT_PAGE, "minilm", short_table(packed + peers))
    plot(packed + trained + peers + others)
