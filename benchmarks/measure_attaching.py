"""What a quantizer costs beside its kernels: attaching to many small weights (T3), the look at weights that each eval
forward takes, and the Python of a step with 300 small weights. Writes ``results/attaching_<machine>.json``.

    python benchmarks/measure_attaching.py [--quick] [--rows attach,fingerprint,small] [--output NAME]

Attaching is the processor's time of fresh models of 16 x 16 weights, the least of some. The look compares fingerprints
of all weights and of what was learned for them; its share is of one eval forward on a batch of 8. All on one thread.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, Variant, machine_name, store, time_variants
from torch import nn
from training_models import LENGTH, VOCABULARY, Encoder, ManyLayers

import diffq_fast
from diffq_fast import LSQ, ActivationQuantizer, DiffQuantizer, RateQuantizer, UniformQuantizer, functional

COUNTS = (512, 2048, 8192)
QUANTIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "DiffQuantizer": lambda model: DiffQuantizer(model, group_size=8, min_size=0),
    "RateQuantizer": lambda model: RateQuantizer(model, min_size=0),
    "UniformQuantizer": lambda model: UniformQuantizer(model, min_size=0),
    "LSQ": lambda model: LSQ(model, min_size=0),
    "ActivationQuantizer": lambda model: ActivationQuantizer(model),
}
BATCH = 8


def measure_attach(quick: bool) -> dict[str, dict[str, float]]:
    """T3: seconds of the processor, by quantizer and number of weights."""
    counts = [count // 32 for count in COUNTS] if quick else COUNTS
    return {name: {str(count): attaching(make, count) for count in counts} for name, make in QUANTIZERS.items()}


def attaching(make: Callable[[nn.Module], Any], count: int) -> float:
    make(nn.Sequential(nn.Linear(16, 16)))
    times = []
    for _ in range(3):
        model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(count)))
        gc.collect()
        start = time.process_time()
        quantizer = make(model)
        times.append(time.process_time() - start)
        del quantizer
    return min(times)


def measure_fingerprint(quick: bool) -> dict[str, dict[str, float]]:
    """Seconds of an eval forward of a plain model, and of the look that a quantizer's takes, in turns."""
    tokens = torch.randint(0, 1000 if quick else VOCABULARY, (BATCH, LENGTH))
    cases = {
        "1024 x 1024": (nn.Linear(1024, 1024), torch.randn(BATCH, 1024)),
        "MiniLM's shape": (Encoder(1, 1000) if quick else Encoder(), tokens),
    }
    return {name: look_of(model.eval(), inputs, 0.1 if quick else 4.0) for name, (model, inputs) in cases.items()}


@torch.no_grad()
def look_of(model: nn.Module, inputs: torch.Tensor, seconds: float) -> dict[str, float]:
    quantizer = DiffQuantizer(model, group_size=8)
    model(inputs)
    asked: list[tuple[Any, ...]] = []
    compare = functional.memory.fingerprints
    functional.memory.fingerprints = lambda *given: asked.append(given) or compare(*given)
    model(inputs)
    functional.memory.fingerprints = compare
    (pieces, _), look = asked[-1], iter(range(2**62))
    quantised = time_variants([Variant("eval forward", lambda: model(inputs))], seconds)
    quantizer.bake()
    variants = [
        Variant("plain forward", lambda: model(inputs)),
        Variant("look", lambda: compare(pieces, next(look))),
    ]
    found = {**quantised, **time_variants(variants, seconds)}
    result = {name: each["least"] for name, each in found.items()}
    return result | {"share": result["look"] / result["plain forward"], "bytes": sum(count for _, count in pieces)}


def measure_small(quick: bool) -> dict[str, Any]:
    """Where the time of forward and backward of 300 small weights goes: the processor's milliseconds, by place."""
    model, inputs = ManyLayers(30 if quick else 300), torch.randn(4, 16)
    quantizer = DiffQuantizer(model, group_size=8, min_size=0, noise="uniform")
    quantizer.no_optimizer()

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        model(inputs).sum().backward()

    parameters = list(model.parameters())
    rounds = 2 if quick else 50
    for _ in range(3):
        step()
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    for _ in range(rounds):
        step()
    profiler.disable()
    places: dict[str, float] = {}
    for (file, _, function), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        places[f"{place(file)}: {function}"] = places.get(f"{place(file)}: {function}", 0.0) + 1e3 * own / rounds
    largest = sorted(places.items(), key=lambda item: -item[1])[:20]
    return {"processor milliseconds under the profiler": sum(places.values()), "places": dict(largest)}


def place(file: str) -> str:
    """A file of this package by its path in it, another by its name."""
    root = Path(diffq_fast.__file__).parent.parent
    path = Path(file)
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short: to see that everything runs")
    parser.add_argument("--rows", default="fingerprint,attach,small")
    parser.add_argument("--output", help="name of the file under results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    measures = {"attach": measure_attach, "fingerprint": measure_fingerprint, "small": measure_small}
    name = given.output or f"attaching_{machine_name()}{'_quick' if given.quick else ''}"
    path = RESULTS / f"{name}.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}  # other rows stay
    for row in given.rows.split(","):
        results[row] = measures[row](given.quick)
        print(f"written: {store(name, results)}", flush=True)


if __name__ == "__main__":
    main()
