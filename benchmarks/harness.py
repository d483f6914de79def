"""Times variants of one operation against one another, and stores what was found with what it was found on.

Variants are called in turns, so that a machine that slows down slows all of them; figures are medians. A variant is
checked before it is timed. ``cold`` runs stream through a buffer larger than most caches before each call.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
FLUSH_BYTES = 1 << 28


@dataclass
class Variant:
    """One way to do the operation.

    run: does it once. check: raises when the result is wrong. bytes: memory traffic that the operation cannot avoid.
    before: what has to be done before each run, and is not timed.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[], None] | None = None
    bytes: int = 0
    before: Callable[[], Any] | None = None


class Flush:
    """Reads and writes more memory than caches hold."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(FLUSH_BYTES // 4)

    def __call__(self) -> None:
        self.buffer.add_(1)


def time_variants(
    variants: Sequence[Variant], seconds: float = 1.0, cold: bool = False, least: int = 5
) -> dict[str, dict[str, float]]:
    """Median and least wall time, and median CPU time, of each variant, in seconds.

    Args:
        seconds: about how long each variant runs in all. least: rounds at least.
    """
    for variant in variants:
        if variant.check is not None:
            variant.check()
    flush = Flush() if cold else None
    wall: dict[str, list[float]] = {variant.name: [] for variant in variants}
    cpu: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for variant in variants:
        variant.run()
    deadline = time.perf_counter() + seconds * len(variants)
    rounds = 0
    while rounds < least or time.perf_counter() < deadline:
        for variant in variants:
            if variant.before is not None:
                variant.before()
            if flush is not None:
                flush()
            start, cpu_start = time.perf_counter(), time.process_time()
            variant.run()
            cpu[variant.name].append(time.process_time() - cpu_start)
            wall[variant.name].append(time.perf_counter() - start)
        rounds += 1
    return {
        variant.name: {
            "median": statistics.median(wall[variant.name]),
            "least": min(wall[variant.name]),
            "cpu": statistics.median(cpu[variant.name]),
            "bytes": variant.bytes,
            "rounds": rounds,
        }
        for variant in variants
    }


def _first(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine() -> dict[str, Any]:
    """Processor, cores, instruction set, versions, commit, and how busy the machine was."""
    import numpy

    import diffq_fast
    from diffq_fast.backends.cpu.loading import core

    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": core.instruction_set() if core else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "diffq_fast": diffq_fast.__version__,
        "diffq": _version("diffq"),
        "commit": _first(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]),
    }


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine_name() -> str:
    """A file name's part: cores and instruction set, without what a part of the kernels may use besides."""
    found = machine()
    return f"{found['cores']}core_{(found['instruction_set'] or 'torch').partition('_')[0]}"


def store(name: str, results: Any) -> Path:
    """Write ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    return path
