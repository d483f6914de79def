"""The forward in one launch (``add_noise_ticketed_kernels.py``): which forwards take it, and in which order its work
is done.

A weight of up to about 24 MB is still in a large GPU's L2 when its noise reads it again. The form is chosen by
``DIFFQ_FAST_TICKETED=1``; without it, two launches do the same.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from ...reference.options import NoiseOptions
from .add_noise_ticketed_kernels import COUNTERS, Results, Scratch, ticketed_noise_kernel
from .arguments import Config, Rule, Tables
from .launching import CHUNK, divides_step, launch, tile_steps
from .tables import MAX_PLANS, Plan, counters, kept
from .weight_range_kernels import PARTIALS

# A range tile is reduced in steps of so many elements.
RANGE_STEP = 4096
LARGEST_GROUP = 1024
# As many programs of WARPS warps as the kernel's registers let a multiprocessor hold.
PROGRAMS_PER_MULTIPROCESSOR = 4


def takes(options: NoiseOptions) -> bool:
    """Whether the one launch does this kind of forward. Larger groups would need registers of two programs."""
    return not options.per_group and options.group_size <= LARGEST_GROUP and divides_step(options.group_size)


def config_of(config: Config, narrow: bool) -> Config:
    """The config of ``add_noise_kernel`` for this form: half rounds where the range beside them would have registers
    spilled."""
    steps = tile_steps(config.group_size, narrow or config.group_size <= 4)
    return config._replace(range_step=RANGE_STEP, chunk=CHUNK, **steps)


def ticket_order(tiles: Sequence[int], lag: int) -> list[tuple[int, bool]]:
    """``(entry, is noise)`` in the order of the tickets: R0, R1, N0, R2, N1, ... for weights of ``lag`` tiles or more.

    A weight's noise follows once ``lag`` range tiles of later weights stand between: so many programs can be at
    work before one must wait. Weights without tiles get none.
    """
    order: list[tuple[int, bool]] = []
    waiting: deque[tuple[int, int]] = deque()
    handed_out = 0
    for entry, number in enumerate(tiles):
        if not number:
            continue
        handed_out += number
        order.append((entry, False))
        waiting.append((entry, handed_out))
        while waiting[0][1] + lag <= handed_out:
            order.append((waiting.popleft()[0], True))
    return order + [(entry, True) for entry, _ in waiting]


@functools.lru_cache(maxsize=MAX_PLANS)
def tickets_of(device: torch.device, tiles: tuple[int, ...], lag: int) -> Tensor:
    """int64 ``[2 * tiles of all weights + 1]`` on the device, as the kernel reads them."""
    runs = [
        (torch.arange(tiles[entry], dtype=torch.int64, device="cpu") << 32) + 2 * entry + noise
        for entry, noise in ticket_order(tiles, lag)
    ]
    weights = torch.tensor([len(tiles)], dtype=torch.int64, device="cpu")
    return torch.cat([*runs, weights]).to(device)


@functools.cache
def _resident_programs(device: torch.device) -> int:
    """How many programs run at a time; on the CPU, where the interpreter runs one, a few to have some leave early."""
    if device.type != "cuda":
        return 3
    return PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def launch_tickets(plan: Plan, tables: Tables, key: Tensor, results: Results, rule: Rule, config: Config) -> None:
    """Queues the one launch for the weights of a plan."""
    device, tiles = key.device, sum(plan.programs)
    programs = min(_resident_programs(device), 2 * tiles)
    tickets = kept(tickets_of(device, plan.programs, programs), device)
    size = PARTIALS.value * tiles * (config.tile // config.range_step)
    partial = torch.empty(size, dtype=torch.int32, device=device)
    scratch = Scratch(counters(device, COUNTERS.value + len(plan.programs)), partial)
    tables = tables._replace(owners_ptr=tickets)
    launch(ticketed_noise_kernel, programs, tables, tiles, scratch, key, results, rule, CONFIG=config)
