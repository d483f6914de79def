"""`SizeTarget` against penalties that were picked by hand, at the very sizes to which these lead.

    python examples/penalty_comparison.py         # on text, two seeds, about a quarter of an hour

For each penalty: DiffQ with it, bits frozen and weights rounded after half of the steps, as `SizeTarget` does it; then
`SizeTarget` with the size that this ended at. Writes benchmarks/results/experiment_penalty.json; a start goes on where
the last one ended.
"""

from typing import Any

import mnist
from experiments.grid import CACHE, SEEDS
from experiments.methods import TARGET, Attached, Method, attach, diffq, size_target
from experiments.store import Store, results_path
from experiments.task import Recipe, Task
from experiments.text import Text
from experiments.training import evaluated, starting_network, train
from torch import nn
from torch.optim import Optimizer

PENALTIES = (1.0, 2.0, 4.0)  # loss per MB
FREEZE_AT = 0.5  # of the steps


def attach_penalty(method: Method, network: nn.Module, optimizer: Optimizer, recipe: Recipe, steps: int) -> Attached:
    """As `attach` does it, with the bits frozen on the way."""
    attached = attach(method, network, optimizer, recipe, steps)
    done = 0

    def after_step() -> None:
        nonlocal done
        done += 1
        if done == int(FREEZE_AT * steps):
            attached.quantizer.freeze_bits(straight_through=True)

    attached.after_step = after_step
    return attached


def measure(task: Task, method: Method, seed: int) -> dict[str, Any]:
    """One training, as a row of the experiments."""
    network = starting_network(task, seed, CACHE, print)
    by = attach_penalty if method.kind == "diffq" else attach
    trained = train(task, network, seed + 1000, task.recipe.steps, task.recipe.rate, method, lambda *_: None, by)
    return evaluated(task, network, method, seed, trained.quantizer, 0.0)[0]


def main() -> None:
    mnist.use_one_thread()
    task = Text()
    task.load()
    plain = mnist.float32_megabytes(task.build())
    store = Store(results_path("penalty", quick=False), task.recipe)
    for seed in SEEDS[:2]:
        for penalty in PENALTIES:
            if store.has(f"SizeTarget for {penalty:g}", seed):
                continue
            by_hand = measure(task, diffq(penalty, **TARGET), seed)
            led = measure(task, size_target(plain / by_hand["megabytes"]), seed)
            store.add([by_hand | {"label": f"penalty {penalty:g}"}, led | {"label": f"SizeTarget for {penalty:g}"}])
            found = f"{by_hand['quality']:.4f}, SizeTarget {led['megabytes']:.4f} MB, {led['quality']:.4f}"
            print(f"seed {seed}, penalty {penalty:g}: {by_hand['megabytes']:.4f} MB, {found}", flush=True)


if __name__ == "__main__":
    main()
