"""Measures every CPU row against its peers and writes ``results/cpu_<machine>.json``; run it on a quiet machine.

python benchmarks/measure_cpu.py [--quick] [--rows forward,state] [--output results/other.json]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import cpu_cases
import torch
from harness import machine_name, store, time_variants

GROUP_SIZES = (8, 1, 16, 128, 0)
PLANES = (2, 4, 8, 12)


def measure_training(count: int, seconds: float, compiled: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for group_size in GROUP_SIZES:
        for cold in (False, True) if group_size == 8 else (False,):
            key = f"g={group_size} {'cold' if cold else 'warm'}"
            modes = compiled if group_size == 8 and not cold else ()
            found[f"forward {key}"] = time_variants(cpu_cases.forward(count, group_size, modes), seconds, cold)
            found[f"step {key}"] = time_variants(cpu_cases.step(count, group_size, modes), seconds, cold)
            print(key, flush=True)
    return found


def measure_export(count: int, seconds: float) -> dict[str, Any]:
    found = {}
    for group_size in GROUP_SIZES:
        found[f"state g={group_size}"] = time_variants(cpu_cases.state(count, group_size), seconds)
        found[f"save g={group_size}"] = time_variants(cpu_cases.save(count, group_size), seconds)
        for mixed in (False, True):
            key = f"words g={group_size} {'mixed' if mixed else '8 bits'}"
            found[key] = time_variants(cpu_cases.words(count, group_size, mixed and group_size > 0), seconds)
        print(f"export g={group_size}", flush=True)
    return found


def measure_planes(count: int, seconds: float) -> dict[str, Any]:
    """One thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            f"planes {nbits} bits {'unpack' if unpack else 'pack'}": time_variants(
                cpu_cases.planes(count, nbits, unpack), seconds
            )
            for nbits in PLANES
            for unpack in (False, True)
        }
    finally:
        torch.set_num_threads(threads)


def measure_scaling(largest: int, seconds: float) -> dict[str, Any]:
    """Forward, step and packing against the number of weights, on 1 thread and on all."""
    found = {}
    all_threads = torch.get_num_threads()
    for exponent in range(16, largest + 1, 2):
        for threads in sorted({1, all_threads}):
            torch.set_num_threads(threads)
            variants = [each for each in cpu_cases.forward(2**exponent, 8) if "diffq " not in each.name]
            found[f"forward 2^{exponent} {threads} threads"] = time_variants(variants, seconds, least=3)
            found[f"words 2^{exponent} {threads} threads"] = time_variants(
                cpu_cases.words(2**exponent, 8, True), seconds, least=3
            )
        print(f"2^{exponent}", flush=True)
    torch.set_num_threads(all_threads)
    return found


def measure_main_rows(count: int, seconds: float) -> dict[str, Any]:
    """C1, C2, C5 and C7, the rows that the package without its core is held to (DIFFQ_FAST_DISABLE_CORE=1)."""
    found = {
        "forward g=8": time_variants(cpu_cases.forward(count, 8), seconds, least=3),
        "step g=8": time_variants(cpu_cases.step(count, 8), seconds, least=3),
        "state g=8": time_variants(cpu_cases.state(count, 8), seconds, least=3),
    }
    return found | measure_planes(count, seconds / 4)


MEMORY = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {folder!r})
import cpu_cases, diffq_fast
def resident(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(name)) * 1024
for count in (1000, {count}):  # the first one loads what the second one needs
    holder, _ = cpu_cases.quantized(diffq_fast, count, {group_size})
    holder.train()
    grad = torch.ones(count)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    holder().backward(grad)
    extra = resident("VmHWM") - before - sum(4 * p.grad.numel() for p in holder.parameters())
print(extra / {count})
"""


def measure_memory(count: int) -> dict[str, float]:
    """Extra bytes per weight at the peak of a training step, less the gradients that it leaves. Linux only."""
    found = {}
    for group_size in (8, 16):
        script = MEMORY.format(folder=str(Path(__file__).parent), count=count, group_size=group_size)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        found[f"g={group_size}"] = float(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small and short: to see that everything runs")
    parser.add_argument("--rows", default="training,export,planes,eval,scaling,memory")
    parser.add_argument("--compiled", default="default,max-autotune-no-cudagraphs", help="modes of torch.compile")
    parser.add_argument("--output", help="name of the file under results")
    arguments = parser.parse_args()
    count, seconds, largest = (2**18, 0.05, 18) if arguments.quick else (2**24, 2.0, 28)
    modes = tuple(mode for mode in arguments.compiled.split(",") if mode) if not arguments.quick else ()
    measures = {
        "training": lambda: measure_training(count, seconds, modes),
        "export": lambda: measure_export(count, seconds),
        "planes": lambda: measure_planes(count, seconds),
        "eval": lambda: {"eval 4096x4096 batch 1": time_variants(cpu_cases.evaluate(), seconds)},
        "scaling": lambda: measure_scaling(largest, seconds / 4),
        "main": lambda: measure_main_rows(count, seconds),
        "memory": lambda: measure_memory(count),
    }
    results: dict[str, Any] = {"count": count}
    for row in arguments.rows.split(","):
        results[row] = measures[row]()
    results["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    path = store(arguments.output or f"cpu_{machine_name()}{'_quick' if arguments.quick else ''}", results)
    print(json.dumps({"written": str(path)}))


if __name__ == "__main__":
    main()
