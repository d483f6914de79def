"""Memory of each process of a sharded training: between its steps, and at the peak of one. Writes
``results/sharded_memory.json``.

    python benchmarks/measure_sharded_memory.py

A network of 96 MB of linear layers in six blocks, trained with Adam: plain, and with a ``DiffQuantizer`` of groups of
8 and the price of its size. Over two and four processes of this machine (gloo) it is sharded by ``fully_shard``; in one
it is whole. Counted: the bytes of parameters, of what is learned, of gradients and of the optimizer's states. Measured:
what a process has grown by, from the system, since it trained a small network in the same way, which takes with it what
torch loads at its first use; the largest of all processes.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness import store
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import diffq_fast

WORLDS = (1, 2, 4)
BLOCKS, LAYERS, WIDTH, SMALL, STEPS = 6, 4, 1024, 64, 4
SETTINGS = ("plain", "quantised")


def resident(line: str) -> int:
    """Bytes: ``VmRSS``, what is resident now, or ``VmHWM``, the most since the last :func:`forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{line}:")[1].split()[0])


def settle() -> None:
    """Give back what the allocators keep."""
    diffq_fast.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def network(world: int, width: int) -> nn.Sequential:
    blocks = [[layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.ReLU())] for _ in range(BLOCKS)]
    model = nn.Sequential(*(nn.Sequential(*block) for block in blocks))
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        for block in model:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def kept(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """What a process keeps between two steps."""
    for param in model.parameters():
        yield from (param, param.grad)
        yield from optimizer.state[param].values()


def measured(world: int, quantised: bool, width: int) -> dict[str, int]:
    torch.manual_seed(0)
    settle()
    before = resident("VmRSS")
    model = network(world, width)
    parameters: Any = model.parameters()
    if quantised:
        quantizer = diffq_fast.DiffQuantizer(model, min_size=0, group_size=8)
        parameters = quantizer.parameter_groups(lr=1e-3, bits_lr=1e-2)
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    inputs = torch.randn(8, width)
    for _ in range(STEPS):
        optimizer.zero_grad()
        settle()
        forget_peak()
        loss = model(inputs).square().mean()
        (loss + 1e-3 * quantizer.model_size() if quantised else loss).backward()
        optimizer.step()
    peak = resident("VmHWM") - before
    settle()
    local = (getattr(each, "_local_tensor", each) for each in kept(model, optimizer))
    counted = sum(each.numel() * each.element_size() for each in local)
    return {"counted_bytes": counted, "resident_bytes": resident("VmRSS") - before, "peak_bytes": peak}


def _run(rank: int, world: int, port: int, quantised: bool, width: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    measured(world, quantised, SMALL)
    torch.save(measured(world, quantised, width), f"{folder}/{rank}")
    dist.barrier()
    os._exit(0)  # gloo's threads must not outlive Python


def largest(world: int, quantised: bool, width: int) -> dict[str, int]:
    """Of so many fresh processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (world, port, quantised, width, folder), nprocs=world)
        ranks = [torch.load(f"{folder}/{rank}") for rank in range(world)]
    return {key: max(rank[key] for rank in ranks) for key in ranks[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network: to see that everything runs")
    given = parser.parse_args()
    width = 128 if given.quick else WIDTH
    rows: dict[str, dict[str, dict[str, int]]] = {setting: {} for setting in SETTINGS}
    for setting in SETTINGS:
        for world in WORLDS:
            rows[setting][str(world)] = largest(world, setting == "quantised", width)
            print(setting, world, {key: f"{value / 2**20:.1f} MB" for key, value in rows[setting][str(world)].items()})
    print(
        "written",
        store(
            f"sharded_memory{'_quick' if given.quick else ''}",
            {"layers": BLOCKS * LAYERS, "width": width, "rows": rows},
        ),
    )


if __name__ == "__main__":
    main()
