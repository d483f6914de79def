"""What ``compare_commits.py`` times: rows C1 to C9 and whole training steps, by what all versions of the package have.

Run as a program, it is told a package's folder, reads names of rows, and prints seconds of one call for each.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

Run = Callable[[], Any]
Case = tuple[Run, Run]  # what is timed, and what is done before it
QUICK = sys.argv[-1] == "quick"
COUNT = 2**14 if QUICK else 2**24


class Holder(nn.Module):
    """A module that is only its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(COUNT, generator=torch.Generator().manual_seed(0)))

    def forward(self) -> torch.Tensor:
        return self.weight


def quantized(noise: str = "uniform") -> tuple[Holder, Any]:
    """A holder and its quantizer, whose groups of 8 have learned different bits."""
    import diffq_fast

    holder = Holder()
    quantizer = diffq_fast.DiffQuantizer(holder, group_size=8, min_size=0, noise=noise)
    quantizer.setup_optimizer(torch.optim.SGD([holder.weight], lr=0.1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in holder.named_parameters():
            if name != "weight":
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return holder, quantizer


def forward(noise: str) -> Run:
    holder, _ = quantized(noise)
    return holder.train()


def step() -> Run:
    holder, _ = quantized()
    holder.train()
    grad = torch.randn(COUNT)

    def run() -> None:
        for parameter in holder.parameters():
            parameter.grad = None
        holder().backward(grad)

    return run


def state() -> Run:
    _, quantizer = quantized()
    return lambda: quantizer.get_quantized_state(packed=True)


def save() -> Case:
    """To a new file, without fsync."""
    import diffq_fast

    path = Path(tempfile.mkdtemp()) / "model"
    _, quantizer = quantized()

    def run() -> None:
        fsync, os.fsync = os.fsync, lambda descriptor: None
        try:
            diffq_fast.save(quantizer, path)
        finally:
            os.fsync = fsync

    return run, lambda: path.unlink(missing_ok=True)


def load() -> Run:
    import diffq_fast

    path = Path(tempfile.mkdtemp()) / "model"
    _, quantizer = quantized()
    diffq_fast.save(quantizer, path)
    holder = Holder()
    return lambda: diffq_fast.load(path, holder)


def planes(unpack: bool) -> Run:
    """On one thread, 8 bits."""
    from diffq_fast import bitpack

    levels = torch.randint(0, 256, (COUNT,), dtype=torch.int16)
    packed = bitpack.pack(levels, 8)

    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        bitpack.unpack(packed, COUNT) if unpack else bitpack.pack(levels, 8)
        torch.set_num_threads(threads)

    return run


def evaluate(size: int) -> Run:
    """A layer of size times size, one input."""
    import diffq_fast

    layer = nn.Linear(size, size, bias=False)
    diffq_fast.DiffQuantizer(layer, group_size=8, min_size=0)
    layer.eval()
    x = torch.randn(1, size)

    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def evaluate_anew() -> Case:
    """The first forward after the weight was written: its eval form has to be made."""
    holder, _ = quantized()
    holder.eval()

    def write() -> None:
        with torch.no_grad():
            holder.weight[:1].add_(0.25)

    return holder, write


def training_step(noise: str, group_size: int) -> Run:
    import training_models

    import diffq_fast

    return training_models.encoder_step(QUICK, diffq_fast, {"group_size": group_size, "noise": noise})


def model_size() -> Run:
    """The size of MiniLM's shape in groups of 8, 2.8 million logits, and its gradient."""
    import training_models

    import diffq_fast

    model = training_models.Encoder(1, 1000) if QUICK else training_models.Encoder()
    quantizer = diffq_fast.DiffQuantizer(model, group_size=8)
    learned = quantizer.learned_parameters()
    return lambda: torch.autograd.grad(quantizer.model_size(), learned)


def small_weights() -> Run:
    """Forward and backward of 300 small weights, on one thread."""
    import training_models

    import diffq_fast

    model, x = training_models.ManyLayers(30 if QUICK else 300), torch.randn(4, 16)
    quantizer = diffq_fast.DiffQuantizer(model, group_size=8, min_size=0, noise="uniform")
    quantizer.setup_optimizer(torch.optim.SGD(list(model.parameters())[:1], lr=0.1))
    model.train()
    parameters = list(model.parameters())

    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for parameter in parameters:
            parameter.grad = None
        model(x).sum().backward()
        torch.set_num_threads(threads)

    return run


ROWS: dict[str, Callable[[], Run | Case]] = {
    "forward uniform": lambda: forward("uniform"),
    "forward gaussian": lambda: forward("gaussian"),
    "forward and backward": step,
    "packed state": state,
    "save": save,
    "load": load,
    "pack planes": lambda: planes(False),
    "unpack planes": lambda: planes(True),
    "eval 4096": lambda: evaluate(4096),
    "eval 64": lambda: evaluate(64),
    "eval weights anew": evaluate_anew,
    "step uniform g=8": lambda: training_step("uniform", 8),
    "step uniform g=64": lambda: training_step("uniform", 64),
    "step gaussian g=8": lambda: training_step("gaussian", 8),
    "model size": model_size,
    "small weights": small_weights,
}


@lru_cache(maxsize=1)
def made(row: str) -> Case:
    case = ROWS[row]()
    return case if isinstance(case, tuple) else (case, lambda: None)


def seconds(row: str) -> float:
    run, before = made(row)
    before()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import diffq_fast

    for line in sys.stdin:
        asked = line.strip()
        print(diffq_fast.__file__ if asked == "where" else seconds(asked), flush=True)


if __name__ == "__main__":
    main()
