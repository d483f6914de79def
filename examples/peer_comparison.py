"""What the kernels are worth in a whole training: DiffQ by diffq 0.2.4 and by diffq_fast, side by side.

    pip install diffq==0.2.4
    python examples/peer_comparison.py         # three seeds, in turns, about ten minutes

Both start from the same float32 networks as the experiments, with the same batches, optimizer, penalty and schedule,
and draw their noise each in its own way. Writes benchmarks/results/experiment_peer.json; a start goes on where the last
one ended.
"""

import time
from typing import Any

import mnist
from diffq import DiffQuantizer as Original
from experiments.grid import CACHE, SEEDS
from experiments.images import ImagesVit
from experiments.methods import Attached, Method, attach
from experiments.store import Store, results_path
from experiments.task import Recipe, Task, mean_score
from experiments.training import compact, starting_network, train
from torch import nn
from torch.optim import Optimizer

KINDS = {"diffq 0.2.4": "original", "diffq_fast": "diffq"}


def attach_original(method: Method, network: nn.Module, optimizer: Optimizer, recipe: Recipe, steps: int) -> Attached:
    """diffq's quantizer with the arguments that `attach` gives to this package's."""
    quantizer = Original(network, min_size=recipe.min_size, float16=True, group_size=method.group_size)
    quantizer.setup_optimizer(optimizer, lr=recipe.bits_rate)
    return Attached(quantizer, lambda: method.penalty * quantizer.model_size())


def measure(task: Task, kind: str, seed: int) -> dict[str, Any]:
    """One training: seconds of the wall clock and of the processor, size in MB, the metric."""
    network = starting_network(task, seed, CACHE, print)
    method = Method("diffq", penalty=task.recipe.penalties[1])
    by = attach_original if kind == "diffq 0.2.4" else attach
    started, cpu_started = time.perf_counter(), time.process_time()
    trained = train(task, network, seed + 1000, task.recipe.steps, task.recipe.rate, method, print, by)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    scores = mean_score(network, task)
    return {
        "label": kind,
        "seed": seed,
        "method": method.stored() | {"kind": KINDS[kind]},
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "megabytes": float(trained.quantizer.true_model_size()),
        "quality": task.quality(scores),
        "scores": compact(scores),
    }


def main() -> None:
    mnist.use_one_thread()
    task = ImagesVit()
    task.load()
    store = Store(results_path("peer", quick=False), task.recipe)
    for seed in SEEDS:
        for kind in KINDS:
            if store.has(kind, seed):
                continue
            print(f"seed {seed}, {kind}", flush=True)
            row = measure(task, kind, seed)
            store.add([row])
            print(f"  {row['cpu_seconds']} s of processor, {row['megabytes']:.4f} MB, {row['quality']:.2f}", flush=True)


if __name__ == "__main__":
    main()
