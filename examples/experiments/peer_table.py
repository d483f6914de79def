"""The comparison of a whole training with the original package, as a table."""

from typing import Any

import mnist_claim
import numpy as np

from .task import Task
from .training import expanded


def peer_table(task: Task, rows: list[dict[str, Any]]) -> str:
    """A line per package: means over seeds, and the paired difference in quality with Student's interval."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    by_label = {label: [row for row in rows if row["label"] == label] for label in labels}
    lines = [
        f"| package | seeds | processor time, s | wall time, s | size, MB | {task.metric} |",
        "|---|---|---|---|---|---|",
    ]
    for label, found in by_label.items():
        cells = [label, str(len(found))]
        cells += [spread(found, "cpu_seconds", 1), spread(found, "seconds", 1)]
        cells += [spread(found, "megabytes", 4), spread(found, "quality", 2)]
        lines.append(f"| {' | '.join(cells)} |")
    first, second = (by_label[label] for label in labels)
    pairs = list(zip(first, second, strict=True))
    differences = np.stack([task.differences(expanded(b["scores"]), expanded(a["scores"])) for a, b in pairs])
    low, high = mnist_claim.student_interval(differences)
    ratio = np.mean([a["cpu_seconds"] / b["cpu_seconds"] for a, b in pairs])
    said = f"{labels[1]} against {labels[0]}: {differences.mean():+.2f} {task.difference_unit}"
    return (
        "\n".join(lines)
        + f"\n\n{said}, 95 % interval {low:+.2f} to {high:+.2f}; {ratio:.2f} times less processor time."
    )


def spread(rows: list[dict[str, Any]], name: str, digits: int) -> str:
    values = np.array([row[name] for row in rows])
    return (
        f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}" if len(rows) > 1 else f"{values[0]:.{digits}f}"
    )
