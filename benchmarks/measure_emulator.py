"""Measures the emulator of compiled kernels (docs/gpu_emulator.md), and its part of CI.

OMP_NUM_THREADS=1 PYTHONPATH=.:tests build/triton-3.6.0/bin/python benchmarks/measure_emulator.py [--only NAMES]

``--only``: of speeds, cells and ci; the others keep what ``results/emulator.json`` has of them. Seconds are of the
processor, so that a machine with other work tells nearly the same. Needs Triton.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from diffq_fast.backends.triton import add_noise
from emulated import grid_cells
from emulated.grid import EQUAL, run_cell
from ptx import launch
from ptx.mutants import recorded_ptx
from ptx.triton_driver import emulated
from support.paths import ROOT
from support.triton_weights import KEY, make, make_logits

RESULT = Path(__file__).parent / "results" / "emulator.json"
MANY, FEW = 260_000, 8_200
OPTIONS = (8, 2.0, 15.0, "bits", "uniform", False)
# Of the grid, one cell of each kind that takes long.
CELLS = (
    "noisy weights, gradients, g = 8, range per tensor: uniform, bits, float32 to bfloat16",
    "noisy weights in one launch: g = 8, uniform, float32 to float32",
    "words, of 3 and 8 bits: g = 8, range per tensor, float32",
)
# CI's commands (.ci/run, part "emulator"), by what they emulate.
CI = {"sm_90": ("3.6.0", "sm_90"), "sm_100": ("3.9.0", "sm_100")}


def seconds_of(run: Callable[[], Any], times: int = 3) -> float:
    """The least of some runs."""
    found = []
    for _ in range(times):
        begun = time.process_time()
        run()
        found.append(time.process_time() - begun)
    return min(found)


def passes(count: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The forward and the backward of one weight."""
    weights, grads = make((count,)), make((count,), seed=3)
    logits, streams = make_logits(weights, OPTIONS[0]), [3]
    _, *ranges = add_noise.add_noise(weights, logits, KEY, streams, None, *OPTIONS)
    return (
        lambda: add_noise.add_noise(weights, logits, KEY, streams, None, *OPTIONS),
        lambda: add_noise.add_noise_backward(grads, weights, logits, *ranges, KEY, streams, *OPTIONS),
    )


def speeds() -> dict[str, float]:
    """Weights a second in large launches; seconds of small ones, and before them."""
    with emulated(90) as emulator:
        forward, backward = passes(MANY)
        few = passes(FEW)
        recorded = recorded_ptx(emulator, lambda: [each() for each in few])
        ptx = [each for versions in recorded.values() for each in versions]
        return {
            "forward, weights a second": MANY / seconds_of(forward),
            "backward, weights a second": MANY / seconds_of(backward),
            "few weights, forward and backward": seconds_of(lambda: [each() for each in few]),
            "kernels of those": len(ptx),
            "parsing and translating them": seconds_of(lambda: [_translate(each) for each in ptx]),
        }


def _translate(ptx: str) -> None:
    launch.generate(launch.parse(ptx), launch.emit, False)


def cells() -> dict[str, dict[str, float]]:
    """Of some cells: seconds without anything in Triton's cache, and again with it."""
    by_name = {cell.name: cell for cell in grid_cells.cells(every=True)}
    found = {}
    for name in CELLS:
        folder = tempfile.mkdtemp()
        command = [sys.executable, __file__, "--cell", name]
        environment = os.environ | {"TRITON_CACHE_DIR": folder}
        kinds = [_cell_seconds(command, environment) for _ in range(2)]
        shutil.rmtree(folder)
        found[by_name[name].name] = dict(zip(("compiled anew", "from the cache"), kinds, strict=True))
    return found


def _cell_seconds(command: list[str], environment: dict[str, str]) -> float:
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return float(said.split()[-1])


def one_cell(name: str) -> None:
    """Prints the seconds of a cell, the first cell of its process but for one that loads all modules."""
    by_name = {cell.name: cell for cell in grid_cells.cells(every=True)}
    run_cell("sm_90", by_name["noise: uniform"].check)
    begun = time.process_time()
    outcome = run_cell("sm_90", by_name[name].check)
    if outcome != EQUAL:
        raise AssertionError(f"{name}: {outcome}")
    print(time.process_time() - begun)


def ci_commands() -> list[list[str]]:
    """The arguments of pytest in CI's part "emulator", in order."""
    part = re.search(r"^emulator\(\) \{.*?^\}", (ROOT / ".ci" / "run").read_text(), re.MULTILINE | re.DOTALL)
    assert part is not None
    return [each.split() for each in re.findall(r"-m pytest (.*)", part[0].replace("\\\n", ""))]


def ci() -> dict[str, dict[str, float]]:
    """Without anything in Triton's cache, as on a new machine."""
    found = {}
    for (name, (version, arch)), arguments in zip(CI.items(), ci_commands(), strict=True):
        folder = tempfile.mkdtemp()
        environment = os.environ | {"TRITON_CACHE_DIR": folder} | ({"PTX_EMULATOR": arch} if arch != "sm_90" else {})
        python = ROOT / "build" / f"triton-{version}" / "bin" / "python"
        before, begun = _children(), time.time()
        subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, env=environment, check=True)
        shutil.rmtree(folder)
        found[name] = {"processor": _children() - before, "wall": time.time() - begun}
    return found


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="speeds,cells,ci")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        return one_cell(arguments.cell)
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result |= {"triton": triton.__version__, "load": os.getloadavg()[0]}
    for name in arguments.only.split(","):
        result[name] = {"speeds": speeds, "cells": cells, "ci": ci}[name]()
    return RESULT.write_text(json.dumps(result, indent=1) + "\n") and None


if __name__ == "__main__":
    main()
