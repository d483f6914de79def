"""Reads what the benchmarks of a dry run stored: every figure that has a target is there, finite, and marked as dry.

python tests/dry/results.py FOLDER
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

FIGURES = {
    "gpu_export.json": {"G11", "W1"},
    "gpu_transformer.json": {"G8"},
    "gpu_operators.json": {"G1", "G2", "G3", "G4", "G5", "G6", "G7", "G9", "G10"},
}
ROW = {"figure": str, "what": str, "value": (int, float), "ship": str, "passed": (bool, type(None))}
MACHINE = {"gpu", "torch", "cuda", "triton", "python", "commit", "dry"}


def problems_of(folder: Path) -> list[str]:
    """What is wrong, in words."""
    return [f"{name}: {problem}" for name in FIGURES for problem in _problems_of_file(folder / name)]


def _problems_of_file(path: Path) -> list[str]:
    if not path.exists():
        return ["expected a file, found none"]
    stored = json.loads(path.read_text())
    problems = []
    machine = stored["machine"]
    unknown = [name for name in machine if machine[name] is None and name != "cuda"]  # a CPU's PyTorch has no CUDA
    if set(machine) != MACHINE or not machine.get("dry") or unknown:
        problems.append(f"expected the machine's {sorted(MACHINE)}, found {machine}")
    missing = FIGURES[path.name] - {row.get("figure") for row in stored["rows"]}
    if missing:
        problems.append(f"expected figures {sorted(FIGURES[path.name])}, found no {sorted(missing)}")
    return problems + [problem for row in stored["rows"] for problem in _problems_of_row(row)]


def _problems_of_row(row: dict[str, Any]) -> list[str]:
    name = row.get("what", row)
    problems = [
        f"{name}: expected {key} to be {kind}, found {row.get(key)!r}"
        for key, kind in ROW.items()
        if not isinstance(row.get(key, ...), kind)
    ]
    times = row.get("milliseconds", {})
    numbers = {"value": row.get("value", math.nan), **times}
    problems += [f"{name}: {key} is {value}" for key, value in numbers.items() if not math.isfinite(value)]
    if row.get("failed"):
        problems.append(f"{name}: failed: {row['failed']}")
    return problems


def main() -> int:
    problems = problems_of(Path(sys.argv[1]))
    print("\n".join(problems) or "every figure that has a target was stored")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
