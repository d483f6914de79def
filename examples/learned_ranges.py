"""What learned ranges are worth: `SizeTarget` with ranges of the weights' own extremes, and with learned ones.

    python examples/learned_ranges.py                 # on text, one seed, about ten minutes
    python examples/learned_ranges.py --validation    # on the part of the training data that choices are made on

Each with a range for a tensor and with ranges for groups, those of 16 bits too. Writes
benchmarks/results/experiment_learned_ranges.json; a start goes on where the last one ended.
"""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import mnist
from experiments.grid import CACHE
from experiments.methods import TARGET, Attached, Method, size_target
from experiments.store import Store, results_path
from experiments.task import Recipe, Task
from experiments.text import Text
from experiments.training import evaluated, starting_network, train
from torch import nn
from torch.optim import Optimizer

import diffq_fast

TIMES = (8.0, 12.0)
OUT_OF_REACH = {("group", False, 12.0)}  # the ranges alone leave less than 2 bits for a weight
SEED = 0


@dataclass(frozen=True)
class Ranges:
    """How ranges are made. ``fitted``: clipped by squared error before the first step. ``rate``: the learning rate of
    their ends, in times that of the weights; None: those of the weights, not learned."""

    scope: str
    rate: float | None = None
    short: bool = False
    fitted: bool = False

    @property
    def label(self) -> str:
        if self.rate is None:
            return f"range per {self.scope}, of the weights"
        bits = " in 16 bits" if self.short else ""
        start = ", clipped at the start" if self.fitted else ""
        return f"range per {self.scope}{bits}, learned at {self.rate:g}{start}"


CHOSEN = (
    Ranges("tensor"),
    Ranges("tensor", 1.0, fitted=True),
    Ranges("group"),
    Ranges("group", 1.0, short=True, fitted=True),
)


def attach(ranges: Ranges) -> Any:
    """What attaches `SizeTarget` with these ranges."""

    def attached(method: Method, network: nn.Module, optimizer: Optimizer, recipe: Recipe, steps: int) -> Attached:
        options: dict[str, Any] = {"range_scope": ranges.scope}
        if ranges.rate is not None:
            options |= {"learn_range": True, "short_ranges": ranges.short}
        plain = mnist.float32_megabytes(network)
        quantizer = diffq_fast.DiffQuantizer(
            network,
            group_size=TARGET["group_size"],
            noise=TARGET["noise"],
            min_size=recipe.min_size,
            float16=True,
            **options,
        )
        learned = {} if ranges.rate is None else {"range_lr": ranges.rate * recipe.rate}
        quantizer.setup_optimizer(optimizer, lr=recipe.bits_rate, **learned)
        if ranges.fitted:
            quantizer.fit_ranges(bits=round(32 / method.times))
        target = diffq_fast.SizeTarget(quantizer, mb=plain / method.times, total_steps=steps)
        return Attached(quantizer, target.penalty, target.step)

    return attached


def measure(task: Task, ranges: Ranges, times: float) -> dict[str, Any]:
    """One training, as a row of the experiments."""
    network, method = starting_network(task, SEED, CACHE, print), size_target(times)
    started = time.process_time()
    by = attach(ranges)
    trained = train(task, network, SEED + 1000, task.recipe.steps, task.recipe.rate, method, lambda *_: None, by)
    return evaluated(task, network, method, SEED, trained.quantizer, time.process_time() - started)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validation", action="store_true", help="stored in build/")
    given = parser.parse_args()
    mnist.use_one_thread()
    task = Text()
    task.load(given.validation)
    store = Store(results_path("learned_ranges", quick=given.validation), task.recipe)
    for times in TIMES:
        for ranges in CHOSEN:
            label = f"SizeTarget {times:g}x, {ranges.label}"
            if store.has(label, SEED) or (ranges.scope, ranges.short, times) in OUT_OF_REACH:
                continue
            row = measure(task, ranges, times)
            store.add([row | {"label": label}])
            print(f"{label}: {row['megabytes']:.4f} MB, {row['quality']:.4f}, {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
