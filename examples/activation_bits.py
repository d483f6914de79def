"""What rounded inputs of layers cost in accuracy, beside learned bits of weights.

    python examples/activation_bits.py                 # two seeds, about ten minutes on one core
    python examples/activation_bits.py --validation    # on the part of the training data that choices are made on

The vision transformer of the experiments, led to an eighth of float32 by `SizeTarget`; inputs of its linear layers as
they are, at fixed bits, and at learned ones. Writes benchmarks/results/experiment_activations.json; a start goes on
where the last one ended.
"""

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mnist
from experiments.grid import CACHE
from experiments.images import ImagesVit
from experiments.methods import Attached, Method, attach, size_target
from experiments.store import Store, results_path
from experiments.task import Recipe, Task
from experiments.training import row, starting_network, train
from torch import nn
from torch.optim import Optimizer

import diffq_fast

TIMES = 8.0
SEEDS = (0, 1)


@dataclass(frozen=True)
class Inputs:
    """How inputs are rounded. ``bits``: 0 for none. ``penalty``: loss per bit of their mean, of learned ones."""

    bits: int
    noise: str | None = "uniform"
    penalty: float = 0.0

    @property
    def label(self) -> str:
        if not self.bits:
            return "inputs float"
        kind = f"learned from {self.bits} bits, penalty {self.penalty:g}" if self.penalty else f"{self.bits} bits"
        return f"inputs {kind}" + ("" if self.noise else ", rounded in training")


CHOSEN = (
    Inputs(0),
    Inputs(8),
    Inputs(4),
    Inputs(4, noise=None),
    Inputs(8, penalty=0.02),
)


def attach_both(inputs: Inputs, kept: list[diffq_fast.ActivationQuantizer]) -> Any:
    """What attaches `SizeTarget`, and an ActivationQuantizer, which is put into ``kept``."""

    def attached(method: Method, network: nn.Module, optimizer: Optimizer, recipe: Recipe, steps: int) -> Attached:
        weights = attach(method, network, optimizer, recipe, steps)
        if not inputs.bits:
            return weights
        activations = diffq_fast.ActivationQuantizer(
            network, inputs.bits, learn_bits=bool(inputs.penalty), noise=inputs.noise
        )
        activations.setup_optimizer(optimizer, lr=recipe.bits_rate)
        kept.append(activations)
        size, penalty = weights.penalty, inputs.penalty
        if penalty:
            weights.penalty = lambda: size() + penalty * activations.mean_bits()
        return weights

    return attached


def measure(task: Task, inputs: Inputs, seed: int, cache: Path) -> dict[str, Any]:
    """One training, as a row of the experiments, evaluated with its inputs rounded."""
    network, method = starting_network(task, seed, cache, print), size_target(TIMES)
    kept: list[diffq_fast.ActivationQuantizer] = []
    started = time.process_time()
    by = attach_both(inputs, kept)
    trained = train(task, network, seed + 1000, task.recipe.steps, task.recipe.rate, method, lambda *_: None, by)
    seconds = time.process_time() - started
    bits = kept[0].bits(exact=True).tolist() if kept else []
    found = row(task, network, method, seed, trained.quantizer, seconds)
    return found | {"label": inputs.label, "inputs": asdict(inputs), "input_bits": bits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validation", action="store_true", help="stored in build/, the first seed alone")
    given = parser.parse_args()
    mnist.use_one_thread()
    task = ImagesVit()
    task.load(given.validation)
    store = Store(results_path("activations", quick=given.validation), task.recipe)
    for seed in SEEDS[:1] if given.validation else SEEDS:
        for inputs in CHOSEN:
            if store.has(inputs.label, seed):
                continue
            found = measure(task, inputs, seed, CACHE / "validation" if given.validation else CACHE)
            store.add([found])
            bits = statistics.mean(found["input_bits"] or [32])
            told = f"{found['megabytes']:.4f} MB, {found['quality']:.2f} %, {bits:.2f} bits, {found['seconds']:.0f} s"
            print(f"seed {seed}, {inputs.label}: {told}", flush=True)


if __name__ == "__main__":
    main()
