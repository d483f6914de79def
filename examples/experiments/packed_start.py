"""Training in float32 first, and then from a calibrated packing: its steps and levels, frozen."""

import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import mnist
import safetensors.torch
import torch
from torch import Tensor, nn

import diffq_fast

from .methods import Attached, Method
from .task import Recipe, Task

PACK_AT = 0.5  # share of the steps
WITHIN = 0.5  # of a step, how far from its level a weight may start
BATCHES, SEED = 40, 5  # that calibrate; they are training data
INIT_STEP = 0.125  # in deviations, of what a packing keeps in half precision: vectors
PREFIX = "network."


class _Loss(nn.Module):
    """A task's loss as a module, which is what ``calibrate`` runs: of a batch, the sum over its examples."""

    def __init__(self, task: Task, network: nn.Module) -> None:
        super().__init__()
        self.task, self.network = task, network

    def forward(self, *batch: Tensor) -> Tensor:
        return self.task.loss(self.network, batch) * len(batch[0])


def moments(task: Task, network: nn.Module) -> dict[str, Tensor]:
    """Second moments of the network's linear and embedding layers under the task's own loss."""
    batches = task.batches(torch.Generator().manual_seed(SEED))
    found = diffq_fast.calibrate(_Loss(task, network), islice(batches, BATCHES), loss=lambda total: total)
    return {name.removeprefix(PREFIX): each for name, each in found.items()}


def packed(task: Task, network: nn.Module, recipe: Recipe, mb: float) -> diffq_fast.RateQuantizer:
    """A quantizer on the network, with the steps and levels of its packing of ``mb``."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, path = Path(folder, "float"), Path(folder, "packed")
        safetensors.torch.save_model(network, checkpoint)
        least, group_size = recipe.min_size, recipe.packed_group_size
        diffq_fast.pack_checkpoint(checkpoint, path, bits_per_weight=8, min_size=least)
        header = diffq_fast.inspect(path).bytes_by_purpose["header"] / 2**20  # which a quantizer's sizes do not count
        packing = {"calibration": moments(task, network), "min_size": least}
        diffq_fast.pack_checkpoint(checkpoint, path, target_mb=mb + header, **packing)
        options = {"min_size": least, "float16": True, "group_size": group_size, "init_step": INIT_STEP}
        quantizer = diffq_fast.RateQuantizer(network, **options)
        quantizer.no_optimizer()
        diffq_fast.start_from_packed(quantizer, path, within=WITHIN)
    return quantizer


def attach_packed(task: Task) -> Callable[..., Attached]:
    """What :func:`methods.attach` is for the others."""

    def attach(
        method: Method, network: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
    ) -> Attached:
        mb = mnist.float32_megabytes(network) / method.times
        attached, begin = Attached(), int(PACK_AT * steps)
        target: list[diffq_fast.SizeTarget] = []
        done = 0

        def after_step() -> None:
            nonlocal done
            done += 1
            if done == begin:
                attached.quantizer = packed(task, network, recipe, mb)
                attached.quantizer.freeze_bits(mb, straight_through=True)
                target.append(diffq_fast.SizeTarget(attached.quantizer, mb=mb, total_steps=steps - begin))
            elif target:
                target[0].step()

        attached.after_step = after_step
        return attached

    return attach
