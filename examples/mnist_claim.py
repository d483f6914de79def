"""The demo's claim over several seeds: how much smaller, and how much accuracy that costs, with an interval.

    python examples/mnist_claim.py       # three seeds, about three minutes
    python examples/mnist_claim.py 10    # goes on from there: finished trainings are kept

Writes benchmarks/results/mnist_claim.json after every training. A start with another recipe, other versions
or another machine begins anew.
"""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mnist
import numpy as np
import torch
from scipy import stats

import diffq_fast

RESULTS = Path("benchmarks/results/mnist_claim.json")
SEEDS = 3
KINDS = ("float32", "DiffQ")
DRAWS = 10_000  # of the bootstrap


def conditions() -> dict[str, Any]:
    """All that must be equal for two trainings to stand in one table."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return {
        "machine": {
            "processor": processor,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "versions": {
            "diffq_fast": diffq_fast.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "recipe": {name: value for name, value in vars(mnist).items() if isinstance(value, int | float)},
    }


def commit() -> str:
    """The checked-out commit, with "-dirty" behind it if the code differs from it."""
    sources = ["diffq_fast", "csrc", "examples"]
    head, changes = (
        subprocess.run(["git", *command], capture_output=True, text=True, check=False).stdout.strip()
        for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", *sources])
    )
    return head + ("-dirty" if changes else "")


def measure(kind: str, seed: int, digits: mnist.Digits, held_out: mnist.Digits, left: int) -> dict[str, Any]:
    """One training: sizes in MB, accuracy in per cent, and which held-out digits came out right (1).

    `left` is the number of trainings that follow; the time left is told as if they took as long as this one.
    """
    started = time.perf_counter()

    def report(epoch: mnist.Epoch) -> None:
        each = (time.perf_counter() - started) / epoch.number
        seconds = each * (mnist.EPOCHS - epoch.number + left * mnist.EPOCHS)
        progress = f"epoch {epoch.number}/{mnist.EPOCHS}  {epoch.megabytes:.3f} MB"
        print(f"seed {seed} {kind}: {progress}, about {seconds:.0f} s left in all", flush=True)

    network = mnist.new_network(seed)
    quantizer = mnist.train(network, digits, seed, with_diffq=kind == "DiffQ", report=report)
    seconds = time.perf_counter() - started
    labels = mnist.predict(network, held_out)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved")
        if quantizer is None:
            torch.save(network.state_dict(), path)
        else:
            diffq_fast.save(quantizer, path)
        on_disk = path.stat().st_size / 2**20
    return {
        "seed": seed,
        "kind": kind,
        "commit": commit(),
        "seconds": round(seconds, 1),
        "megabytes": quantizer.true_model_size() if quantizer else mnist.float32_megabytes(network),
        "megabytes_on_disk": on_disk,
        "accuracy": mnist.accuracy(labels, held_out),
        "bits_per_weight": quantizer.bits_per_weight() if quantizer else {},
        "right": "".join(map(str, (labels == held_out.labels).int().tolist())),
    }


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of `differences` [seeds, digits]; seeds and digits are both drawn anew."""
    generator = np.random.default_rng(0)
    seeds, digits = differences.shape
    means = np.empty(DRAWS)
    for draw in range(DRAWS):
        chosen_seeds = generator.integers(seeds, size=seeds)
        chosen_digits = generator.integers(digits, size=digits)
        means[draw] = differences[chosen_seeds].mean(axis=0)[chosen_digits].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def student_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of the seeds' mean differences, by Student's t: wide where seeds are few."""
    per_seed = differences.mean(axis=1)
    if len(per_seed) < 2:
        return -math.inf, math.inf
    half = stats.t.ppf(0.975, len(per_seed) - 1) * per_seed.std(ddof=1) / math.sqrt(len(per_seed))
    return float(per_seed.mean() - half), float(per_seed.mean() + half)


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: how many times smaller, and the paired difference in accuracy, DiffQ minus float32."""
    plain, small = ([run for run in runs if run["kind"] == kind] for kind in KINDS)
    right = [np.array([[int(digit) for digit in run["right"]] for run in kind]) for kind in (plain, small)]
    differences = 100.0 * (right[1] - right[0])

    def times_smaller(size: str) -> list[float]:
        return [large[size] / packed[size] for large, packed in zip(plain, small, strict=True)]

    return {
        "seeds": len(small),
        "held_out_digits": differences.shape[1],
        "times_smaller": times_smaller("megabytes"),
        "times_smaller_on_disk": times_smaller("megabytes_on_disk"),
        "points": differences.mean(axis=1).tolist(),
        "mean_points": float(differences.mean()),
        "bootstrap_interval_95": bootstrap_interval(differences),
        "student_interval_95": student_interval(differences),
    }


def table(runs: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """One line per seed, then the means and the intervals."""
    lines = [f"{'seed':4s}{'float32':>20s}{'DiffQ':>20s}{'smaller':>9s}{'on disk':>9s}{'difference':>14s}"]
    factors = list(zip(summary["times_smaller"], summary["times_smaller_on_disk"], strict=True))
    for index, (size, disk) in enumerate(factors):
        cells = [f"{run['megabytes']:.3f} MB {run['accuracy']:7.2f} %" for run in runs[2 * index : 2 * index + 2]]
        points = f"{summary['points'][index]:+7.2f} points"
        lines.append(f"{runs[2 * index]['seed']:4d}{cells[0]:>20s}{cells[1]:>20s}{size:8.2f}x{disk:8.2f}x{points}")
    size, disk = np.mean(factors, axis=0)
    lines.append(f"{'mean':44s}{size:8.2f}x{disk:8.2f}x{summary['mean_points']:+7.2f} points")
    for name in ("bootstrap", "student"):
        low, high = summary[f"{name}_interval_95"]
        lines.append(f"95 % interval of the difference, {name}: {low:+.2f} to {high:+.2f} points")
    return "\n".join(lines)


def finished_runs(now: dict[str, Any]) -> list[dict[str, Any]]:
    """The trainings of an earlier start under the same conditions."""
    if not RESULTS.exists():
        return []
    earlier = json.loads(RESULTS.read_text())
    if {name: earlier[name] for name in now} != now:
        print(f"{RESULTS} was measured under other conditions: beginning anew")
        return []
    return earlier["runs"]


def main(seeds: int = SEEDS) -> None:
    mnist.use_one_thread()
    now = conditions()
    runs = finished_runs(now)
    digits, held_out = mnist.split(mnist.load_digits())
    planned = [(seed, kind) for seed in range(seeds) for kind in KINDS]
    for index in range(len(runs), len(planned)):
        seed, kind = planned[index]
        runs.append(measure(kind, seed, digits, held_out, left=len(planned) - index - 1))
        pairs = runs[: len(runs) // 2 * 2]
        summary = summarise(pairs) if pairs else None
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(now | {"summary": summary, "runs": runs}, indent=1) + "\n")
    print("\n" + table(runs, summarise(runs)) + f"\nAll trainings: {RESULTS}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
