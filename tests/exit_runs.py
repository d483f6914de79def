"""Processes that end while daemon threads train: how many end badly with the package, and how many with torch alone.

    python tests/exit_runs.py [runs]

Each run is a process in which daemon threads compute (three train, one evaluates) and the main thread returns after a
random time. It ends well with exit status 0 and nothing written to stderr. Both kinds of runs take turns.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from diffq_fast import DiffQuantizer

KINDS = ("package", "torch alone")
LONGEST = 120.0  # seconds


def model_of(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(256, 256), nn.Dropout(0.1), nn.ReLU(), nn.Linear(256, 256))
    if kind == "torch alone":  # as many calls of torch's as the package makes: a thread inside one is what may abort
        model = nn.Sequential(nn.Linear(256, 16), *[nn.Linear(16, 16) for _ in range(60)])
    if kind == "package":
        DiffQuantizer(model, min_size=0, group_size=8).no_optimizer()
    return model


def train(model: nn.Module, pause: float) -> None:
    inputs = torch.randn(8, 256)
    while True:
        model(inputs).square().mean().backward()
        time.sleep(pause)


def evaluate(model: nn.Module, pause: float) -> None:
    """Eval weights are made anew each time."""
    inputs = torch.randn(8, 256)
    while True:
        with torch.no_grad():
            model[0].bias.add_(0)
            model(inputs)
        time.sleep(pause)


def run(kind: str, seed: int) -> None:
    """What one process does: it returns while its threads compute."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    models = [model_of(kind) for _ in range(3)]
    works: list[tuple[Callable, nn.Module]] = [(train, model) for model in models]
    works.append((evaluate, copy.deepcopy(models[0]).eval()))
    pause = seed % 4 * 0.01  # at the end, threads are inside of torch, or pausing, or either
    for work, model in works:
        threading.Thread(target=work, args=(model, pause), daemon=True).start()
    time.sleep(random.Random(seed).uniform(0.0, 0.2))


def ending_of(kind: str, seed: int) -> str:
    """How a process of this kind ends: it is forked, and leaves as any program does, through Python's own end."""
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            os.dup2(errors.fileno(), 2)
            run(kind, seed)
            sys.exit()
        limit = time.monotonic() + LONGEST
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > limit:
                os.kill(child, 9)
                os.waitpid(child, 0)
                return "hangs"
            time.sleep(0.005)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    status = os.waitstatus_to_exitcode(ended[1])
    return "well" if status == 0 and not lines else f"status {status}: {lines[0] if lines else 'nothing said'}"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    endings = {kind: Counter[str]() for kind in KINDS}
    for seed in range(runs):
        for kind in KINDS:
            endings[kind][ending_of(kind, seed)] += 1
        if (seed + 1) % 20 == 0:
            print(f"{seed + 1} runs of each: {[counts['well'] for counts in endings.values()]} ended well", flush=True)
    for kind, counts in endings.items():
        print(f"{kind}: {counts['well']} of {runs} ended well")
        for ending, number in counts.most_common():
            if ending != "well":
                print(f"  {number} x {ending}")
    sys.exit(endings["package"]["well"] < endings["torch alone"]["well"])


if __name__ == "__main__":
    main()
