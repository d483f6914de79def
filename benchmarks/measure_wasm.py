"""How fast JavaScript reads packed files, beside Python on one thread; writes ``results/wasm_*.json``.

    bash csrc/wasm/build.sh && python benchmarks/measure_wasm.py

A matrix of 2048 x 2048, in Node: opened and verified from memory, read as float32, and multiplied with a vector while
it stays packed. Rates are millions of weights a second, each from the median of what was repeated for ``SECONDS``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import machine_name, store
from torch import nn

import diffq_fast
from diffq_fast.packed.contents import read_packed

SIZE, GROUP, SECONDS = 2048, 8, 1.0
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "build" / "wasm"


def write_files(folder: Path) -> dict[str, Path]:
    """A file for each way to keep levels."""
    torch.manual_seed(0)
    files = {}
    uniform = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    files["4 bits"] = diffq_fast.UniformQuantizer(uniform, bits=4, min_size=0)
    mixed = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    learned = diffq_fast.DiffQuantizer(mixed, group_size=GROUP, min_size=0)
    with torch.no_grad():
        for weight in learned.weights:
            assert weight.learned is not None
            weight.learned.copy_(torch.randn_like(weight.learned) - 1.5)
    files["mixed bits, groups of 8"] = files["the same, coded"] = learned
    paths = {}
    for name, quantizer in files.items():
        paths[name] = folder / f"{len(paths)}.safetensors"
        diffq_fast.save(quantizer, paths[name], coding="coded" if "coded" in name else "fixed")
    return paths


def seconds_of(run: Callable[[], Any]) -> float:
    run()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 5:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def python_rates(path: Path) -> dict[str, float]:
    (weight,) = read_packed(path).packed.values()
    million = weight.count / 1e6
    return {
        "open": million / seconds_of(lambda: read_packed(path)),
        "read": million / seconds_of(lambda: weight.unpack(torch.float32)),
    }


def javascript_rates(path: Path) -> dict[str, float]:
    script = Path(__file__).with_name("measure_wasm.js")
    done = subprocess.run(["node", script, PACKAGE, path, str(SECONDS)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in write_files(Path(folder)).items():
            rows[name] = {
                "bits_per_weight": path.stat().st_size * 8 / SIZE**2,
                "javascript": javascript_rates(path),
                "python": python_rates(path),
            }
            print(name, json.dumps(rows[name]))
    wasm = (PACKAGE / "diffq_fast.wasm").stat().st_size
    node = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    store(f"wasm_{machine_name()}", {"node": node, "wasm_bytes": wasm, "million_weights_per_second": rows})


if __name__ == "__main__":
    main()
