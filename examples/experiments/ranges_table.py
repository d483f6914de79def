"""Learned ranges beside those of the weights' own extremes, as a table."""

from typing import Any

import mnist_claim

from .task import Task
from .training import expanded


def ranges_table(task: Task, rows: list[dict[str, Any]]) -> str:
    """A line for each size and kind of range; the differences are paired with the first kind at the same size."""
    columns = ["SizeTarget", "ranges", "size, MB", "file, MB", task.metric]
    columns += [f"against the first, {task.difference_unit} (95 % interval)", "processor, s"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    first: dict[float, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["method"]["times"]):
        times = row["method"]["times"]
        against = first.setdefault(times, row)
        label = row["label"].partition(", ")[2]
        cells = [f"{times:g}x", label, f"{row['megabytes']:.4f}", f"{row['megabytes_on_disk']:.4f}"]
        cells += [f"{row['quality']:.4f}", "" if against is row else _difference(task, row, against)]
        lines.append(f"| {' | '.join([*cells, str(round(row['seconds']))])} |")
    return "\n".join(lines)


def _difference(task: Task, row: dict[str, Any], against: dict[str, Any]) -> str:
    differences = task.differences(expanded(row["scores"]), expanded(against["scores"]))[None]
    low, high = mnist_claim.bootstrap_interval(differences)
    return f"{differences.mean():+.2f} ({low:+.2f} to {high:+.2f})"
