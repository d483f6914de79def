"""Times work on a CUDA device: variants in turns, device events, medians; launches, host time and memory
besides."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], Any]


def interleaved(variants: dict[str, Work], rounds: int = 15, warmup: int = 3) -> dict[str, float]:
    """Median milliseconds of each variant. Every round runs each of them once, so that drift hits all
    alike."""
    for work in variants.values():
        for _ in range(warmup):
            work()
    torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, work in variants.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            stop.record()
            stop.synchronize()
            times[name].append(start.elapsed_time(stop))
    return {name: statistics.median(values) for name, values in times.items()}


def host_milliseconds(work: Work, rounds: int = 15) -> float:
    """Median time until ``work`` returns, on a device that has nothing else to do."""
    times = []
    for _ in range(rounds + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return statistics.median(times[3:])


def launches(work: Work) -> int:
    """Kernels, copies and fills that ``work`` queues on the device, as the profiler counts them."""
    work()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def peak_bytes(work: Work) -> int:
    """Bytes that ``work`` needs at its peak beyond what was allocated before."""
    work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = work()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


def machine() -> dict[str, Any]:
    """What a stored figure belongs to."""
    import triton

    here = str(Path(__file__).parent)  # benchmarks are run in another folder
    command = ["git", "-C", here, "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit or None,
    }


def store(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def row(figure: str, what: str, value: float, ship: str, passed: bool | None, **details: Any) -> dict[str, Any]:
    """One line of a table: ``figure`` is the target's name, ``ship`` its column in words."""
    return {"figure": figure, "what": what, "value": value, "ship": ship, "passed": passed, **details}


def print_rows(rows: list[dict[str, Any]]) -> None:
    for line in rows:
        verdict = {True: "ok", False: "MISSED", None: ""}[line["passed"]]
        print(f"{line['figure']:<4} {line['what']:<58} {line['value']:>9.3f}  {line['ship']:<10} {verdict}")
