"""One training from scratch in float32, and one with a method from where that ended."""

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mnist
import numpy as np
import safetensors.torch
import torch
from torch import nn

import diffq_fast

from .methods import BITS, Attached, Method, attach
from .packed_start import attach_packed
from .task import Task, mean_score
from .teaching import attach_taught

RENEWAL_BATCHES = 40
RENEWAL_SEED = 7

Report = Callable[[float, str], None]  # share of the steps that are done, what to say


def starting_path(task: str, seed: int, cache: Path) -> Path:
    return cache / f"{task}_seed{seed}.safetensors"


def train(
    task: Task,
    network: nn.Module,
    seed: int,
    steps: int,
    rate: float,
    method: Method,
    report: Report,
    attach: Callable[..., Attached] = attach,
) -> Attached:
    """Train in place for `steps`; `seed` fixes batches and noise, the batches alike for all methods."""
    torch.manual_seed(seed)
    recipe = task.recipe
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=recipe.weight_decay)
    attached = attach(method, network, optimizer, recipe, steps)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: mnist.schedule(step / steps))
    batches = task.batches(torch.Generator().manual_seed(seed))
    network.train()
    losses: list[float] = []
    for step in range(1, steps + 1):
        loss = task.loss(network, next(batches))
        losses.append(loss.item())
        loss = loss + attached.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        attached.after_step()
        if step % math.ceil(steps / 8) == 0:
            size = f", {attached.quantizer.true_model_size():.3f} MB" if attached.quantizer else ""
            report(step / steps, f"loss {sum(losses) / len(losses):.4f}{size}")
            losses.clear()
    return attached


def starting_network(task: Task, seed: int, cache: Path, report: Report) -> nn.Module:
    """The float32 network that every method starts from; trained once per seed, and kept in `cache`."""
    torch.manual_seed(seed)
    network = task.build()
    path = starting_path(task.name, seed, cache)
    if path.exists():
        safetensors.torch.load_model(network, path)
        return network
    train(task, network, seed, task.recipe.start_steps, task.recipe.start_rate, Method("float32"), report)
    _keep(network, path)
    return network


def finished_network(task: Task, seed: int, cache: Path) -> nn.Module:
    """The float32 network after all steps, a teacher of others; kept in `cache` too."""
    path = cache / f"{task.name}_seed{seed}_float32.safetensors"
    network = starting_network(task, seed, cache, lambda share, text: None)
    if path.exists():
        safetensors.torch.load_model(network, path)
        return network
    recipe, plain = task.recipe, Method("float32")
    train(task, network, seed + 1000, recipe.steps, recipe.rate, plain, lambda share, text: None)
    _keep(network, path)
    return network


def _keep(network: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    safetensors.torch.save_model(network, temporary)
    os.replace(temporary, path)


def run(task: Task, method: Method, seed: int, cache: Path, report: Report) -> list[dict[str, Any]]:
    """Train with a method; one row, and for float32 also one for each number of bits after training."""
    network = starting_network(task, seed, cache, lambda share, text: None)
    how = attach_packed(task) if method.base == "packed" else attach
    if method.base != method.kind:
        how = attach_taught(task, how, finished_network(task, seed, cache))
    started = time.perf_counter()
    attached = train(task, network, seed + 1000, task.recipe.steps, task.recipe.rate, method, report, how)
    seconds = time.perf_counter() - started
    rows = evaluated(task, network, method, seed, attached.quantizer, seconds)
    if method.kind == "float32":
        for bits in BITS:
            rounding = Method("ptq", bits=bits)
            quantizer = attach(rounding, network, None, task.recipe, 0).quantizer
            rows += evaluated(task, network, rounding, seed, quantizer, 0.0)
            quantizer.detach()
    return rows


def evaluated(
    task: Task, network: nn.Module, method: Method, seed: int, quantizer: Any, seconds: float
) -> list[dict[str, Any]]:
    """A row, and a second one with renewed statistics where it has batch norms; its buffers stay as they are."""
    rows = [row(task, network, method, seed, quantizer, seconds)]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
        renew_statistics(task, network, norms)
        rows.append(row(task, network, replace(method, renewed=True), seed, quantizer, seconds))
        for name, buffer in network.named_buffers():
            buffer.copy_(kept[name])
    return rows


@torch.no_grad()
def renew_statistics(task: Task, network: nn.Module, norms: list[nn.BatchNorm2d]) -> None:
    """Take the means and variances of batch norms anew, from training batches through the network of the evaluation:
    those of the training are of weights with noise, or without the rounding."""
    network.eval()
    batches = task.batches(torch.Generator().manual_seed(RENEWAL_SEED))
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    for _ in range(RENEWAL_BATCHES):
        network(next(batches)[0])


def row(task: Task, network: nn.Module, method: Method, seed: int, quantizer: Any, seconds: float) -> dict[str, Any]:
    """What is stored of a run: sizes in MB, the metric, and the score of every held-out example."""
    plain = mnist.float32_megabytes(network) if quantizer is None else None
    scores = mean_score(network, task)
    return {
        "label": method.label,
        "seed": seed,
        "method": method.stored(),
        "megabytes": plain if quantizer is None else quantizer.true_model_size(),
        "megabytes_on_disk": on_disk(network, quantizer),
        "quality": task.quality(scores),
        "seconds": round(seconds, 1),
        "scores": compact(scores),
    }


def on_disk(network: nn.Module, quantizer: Any) -> float:
    """Size of the file in MB: `diffq_fast.save`, or safetensors for float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved")
        if quantizer is None:
            safetensors.torch.save_model(network, path)
        else:
            diffq_fast.save(quantizer, path)
        return path.stat().st_size / 2**20


def compact(scores: np.ndarray) -> str | list[float]:
    """Scores for JSON: a string of digits where they are 0 or 1, else numbers of 7 digits."""
    if scores.dtype.kind == "i":
        return "".join(map(str, scores.tolist()))
    return [float(f"{score:.7g}") for score in scores]


def expanded(stored: str | list[float]) -> np.ndarray:
    """The opposite of `compact`."""
    return np.array([int(digit) for digit in stored]) if isinstance(stored, str) else np.array(stored)
