"""Tables of the MiniLM experiments: packing after training, training, and other formats at their sizes."""

import json
from pathlib import Path
from typing import Any

from .store import results_path
from .tables import put

PAGE = Path("docs/experiments.md")


def rows_of(name: str) -> list[dict[str, Any]]:
    """The stored rows of one experiment; none if it has not run."""
    path = results_path(name, quick=False)
    return json.loads(path.read_text())["rows"] if path.exists() else []


def post_training_table(rows: list[dict[str, Any]]) -> str:
    """One line for each packing, methods together, by size."""
    lines = ["| method, bits asked for | bits on disk | Spearman | top 1 | recall at 10 | quality, dB |"]
    lines.append("|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["method"], row["bits"])):
        quality = f"{row['quality_db']:.1f}" if "quality_db" in row else ""
        lines.append(f"| {row['label']} | {row['bits']:.3f} | {scores(row)} | {quality} |")
    return "\n".join(lines)


def scores(row: dict[str, Any]) -> str:
    """Three cells."""
    return f"{row['spearman']:.4f} | {100 * row['top1']:.1f} % | {100 * row['recall10']:.1f} %"


def put_tables() -> None:
    """Into the docs, from what is stored."""
    packed = rows_of("post_training")
    if packed:
        put(PAGE, "post_training", post_training_table(packed))
