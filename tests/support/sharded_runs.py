"""Small models trained in one process or over several: the same batches, parted among the processes of a mesh."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.utils.checkpoint import checkpoint

from diffq_fast import LSQ, DiffQuantizer, RateQuantizer, UniformQuantizer

STEPS, BATCH = 3, 8
OPTIONS: dict[str, dict[str, Any]] = {"min_size": 0, "exclude": ("bias",)}
QUANTIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "gaussian": lambda model: DiffQuantizer(model, group_size=4, init_bits=4, **OPTIONS),
    "uniform": lambda model: DiffQuantizer(model, group_size=0, init_bits=4, noise="uniform", **OPTIONS),
    "group_ranges": lambda model: DiffQuantizer(model, group_size=8, init_bits=4, range_scope="group", **OPTIONS),
    "rate": lambda model: RateQuantizer(model, **OPTIONS),
    "lsq": lambda model: LSQ(model, bits=4, **OPTIONS),
    "qat": lambda model: UniformQuantizer(model, bits=4, qat=True, **OPTIONS),
}


class Net(nn.Module):
    """Three layers whose rows no number of processes divides, and one weight read at two places."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 10, bias=False)
        self.first = nn.Sequential(nn.Linear(10, 7), nn.Tanh(), nn.Linear(7, 10))
        self.second = nn.Sequential(nn.Linear(10, 13), nn.Tanh(), nn.Linear(13, 10))
        self.norm = nn.LayerNorm(10)
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.embed(x)
        for block in (self.first, self.second):
            x = x + (checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x))
        return self.norm(x) @ self.embed.weight


class Mlp(nn.Module):
    """Groups of four are cut where ``down`` is split: its rows have ten columns."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.enter, self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 10), nn.Linear(10, 6)
        self.checkpointed = checkpointed

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return checkpoint(self.middle, x, use_reentrant=False) if self.checkpointed else self.middle(x)


PLAN = {"up": ColwiseParallel(), "down": RowwiseParallel()}


def batches(steps: int = STEPS) -> list[torch.Tensor]:
    """The same for every run."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(BATCH, 6, generator=generator) for _ in range(steps)]


def own_rows(batch: torch.Tensor, mesh: Any) -> torch.Tensor:
    """The rows of one process of a data-parallel mesh."""
    if mesh is None:
        return batch
    place = 0
    for index in range(mesh.ndim):
        place = place * mesh.size(index) + mesh.get_local_rank(index)
    return batch.chunk(mesh.size())[place]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy: what one process has of a DTensor may be all of it, in memory that ``fully_shard`` takes back."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(value) for name, value in model.state_dict().items()}


def mean_over(value: torch.Tensor, mesh: Any) -> float:
    value = value.detach().clone()
    if mesh is not None:
        for index in range(mesh.ndim):
            dist.all_reduce(value, group=mesh.get_group(index))
        value /= mesh.size()
    return float(value)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _run_rank(rank: int, world: int, port: int, run: Callable, path: str) -> None:
    """One process. It ends at once: gloo's threads must not outlive Python (see test_distributed of quantizers)."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.save(run(path), f"{path}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def as_torchrun() -> None:
    """Tell libraries that start processes by themselves that a launcher has started these."""
    rank, world = dist.get_rank(), dist.get_world_size()
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "TORCHELASTIC_RUN_ID": "none"}
    os.environ.update({name: str(value) for name, value in told.items()})


def run_processes(run: Callable[[str], Any], path: Any, world: int = 4) -> list[Any]:
    """What ``run(path)`` gives in each of so many processes."""
    mp.spawn(_run_rank, (world, free_port(), run, str(path)), nprocs=world)
    return [torch.load(f"{path}/rank{rank}.pt", weights_only=False) for rank in range(world)]
