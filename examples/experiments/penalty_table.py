"""SizeTarget beside penalties that were picked by hand, as a table."""

from typing import Any

import numpy as np

from .task import Task
from .training import expanded


def penalty_table(task: Task, rows: list[dict[str, Any]]) -> str:
    """A line per seed and penalty: both sizes and qualities, and the mean of the paired differences."""
    columns = ["seed", "penalty per MB", "size, MB", f"{task.metric}, by hand", "SizeTarget's size, MB", "SizeTarget"]
    columns += [f"SizeTarget against it, {task.difference_unit}"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    found = {(row["seed"], row["label"]): row for row in rows}
    for (seed, label), by_hand in found.items():
        if not label.startswith("penalty"):
            continue
        led = found[seed, label.replace("penalty", "SizeTarget for")]
        difference = np.mean(task.differences(expanded(led["scores"]), expanded(by_hand["scores"])))
        cells = [str(seed), label.removeprefix("penalty "), f"{by_hand['megabytes']:.4f}", f"{by_hand['quality']:.4f}"]
        cells += [f"{led['megabytes']:.4f}", f"{led['quality']:.4f}", f"{difference:+.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
