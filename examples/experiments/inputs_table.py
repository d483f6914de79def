"""The table of rounded inputs: what each way of rounding leaves of the accuracy."""

import statistics
from typing import Any

import mnist_claim
import numpy as np

from .task import Task
from .training import expanded


def inputs_table(task: Task, rows: list[dict[str, Any]]) -> str:
    """A line for each way, over the seeds; the differences are paired with the first way, of float inputs."""
    ways: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        ways.setdefault(row["label"], {})[row["seed"]] = row
    columns = ["inputs", "seeds", "mean bits of an input", "file, MB", task.metric]
    columns += [f"against float inputs, {task.difference_unit} (95 % interval)", "processor, s"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    against = next(iter(ways.values()))
    for label, way in ways.items():
        means = {key: statistics.mean(row[key] for row in way.values()) for key in COLUMNS}
        bits = [bit for row in way.values() for bit in row["input_bits"]]
        cells = [label.removeprefix("inputs "), str(len(way)), f"{statistics.mean(bits):.2f}" if bits else ""]
        cells += [f"{means['megabytes_on_disk']:.4f}", f"{means['quality']:.2f}"]
        cells += ["" if way is against else _difference(task, way, against), f"{means['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


COLUMNS = ("megabytes_on_disk", "quality", "seconds")


def _difference(task: Task, way: dict[int, dict[str, Any]], against: dict[int, dict[str, Any]]) -> str:
    pairs = [(expanded(way[seed]["scores"]), expanded(against[seed]["scores"])) for seed in sorted(way)]
    differences = np.stack([task.differences(scores, plain) for scores, plain in pairs])
    low, high = mnist_claim.bootstrap_interval(differences)
    return f"{differences.mean():+.2f} ({low:+.2f} to {high:+.2f})"
