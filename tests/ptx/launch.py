"""Runs a kernel: blocks of threads in waves, threads as elements of numpy arrays, divergence by the earliest block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from .approximations import Approximations
from .generator import generate
from .global_memory import GlobalMemory, Shadows
from .instructions import emit
from .memory import Allocations
from .parser import BITS, Kernel, parse
from .problems import EmulationError, Problems
from .schedules import Schedule
from .shared_memory import SharedMemory
from .threads import Clocks, Threads
from .warps import Warps

TURN = 16  # steps, of which one is that of the threads which stand last


@dataclass
class Program:
    """A kernel that can run. ``cell``, ``shared_cell``: bytes of the smallest access, by which memory is watched."""

    kernel: Kernel
    functions: list[Callable]
    cell: int
    shared_cell: int
    synchronises: bool
    opcodes: Counter[str]


@lru_cache(maxsize=256)
def program_of(ptx: str, contract: bool = False) -> Program:
    kernel = parse(ptx)
    every = list(kernel.instructions())
    shared_cell = min([2 if "matrix" in each.name else 4 for each in every], default=4)
    return Program(
        kernel,
        generate(kernel, emit, contract),
        _smallest(every, "global", 4),
        _smallest(every, "shared", shared_cell),
        any(each.synchronises for each in every),
        Counter(".".join(each.opcode) for each in every),
    )


def _smallest(instructions, space: str, default: int) -> int:
    """Bytes of the smallest store to a space (of the smallest load too, where memory is shared)."""
    found = [
        BITS[each.kind] // 8
        for each in instructions
        if len(each.opcode) > 2 and each.opcode[1].split("::")[0] == space and (space == "shared" or each.name != "ld")
    ]
    return min([*found, default])


@dataclass
class Settings:
    """How launches are emulated.

    ``wave``: how many blocks of threads run at a time, where none waits for another. ``schedule``: which warp (or
    block, by ``unit``) goes on in kernels whose blocks tell each other anything; None: all together. ``ends_only``: of
    a larger grid only so many programs at each end run. ``most_steps``: of a wave, before it counts as endless.
    """

    approximate: Approximations = field(default_factory=Approximations)
    contract: bool = False
    schedule: Schedule | None = None
    unit: str = "warp"
    wave: int = 64
    ends_only: int | None = None
    most_steps: int | None = None


class Launch:
    """One launch of ``grid`` blocks. ``parameters``: numpy scalars by the names in the PTX; ``shared``: bytes."""

    def __init__(
        self, program: Program, grid: int, parameters: dict[str, Any], shared: int, allocations: Allocations,
        settings: Settings, problems: Problems,
    ) -> None:  # fmt: skip
        self.program, self.kernel, self.grid, self.parameters = program, program.kernel, grid, parameters
        self.shared_bytes, self.allocations, self.settings, self.problems = shared, allocations, settings, problems
        self.shadows = Shadows(allocations)
        self.schedule = settings.schedule if program.synchronises else None
        self.steps = 0  # of the longest wave

    def report(self, what, instruction=None) -> None:
        self.problems.add(self.kernel.name, what, instruction)

    def run(self) -> None:
        size = self.grid if self.program.synchronises else min(self.settings.wave, self.grid)
        ends = self.settings.ends_only
        if ends is not None:
            size = min(size, ends)
        for first in range(0, self.grid, size):
            if ends is None or first < ends or first + size > self.grid - ends:
                Wave(self, first, min(size, self.grid - first)).run()


class _Registers(dict):
    """By name; one that nobody has written holds junk."""

    def __init__(self, widths: dict[str, int], threads: int, seed: int) -> None:
        super().__init__()
        self.widths = widths
        self.junk = np.random.default_rng(seed).integers(0, 1 << 63, threads, dtype=np.uint64)

    def __missing__(self, register: str):
        width = self.widths[register.rstrip("0123456789")]
        salted = (self.junk * np.uint64(2 * len(self) + 1)) >> np.uint64(13)
        self[register] = (salted & np.uint64(1) != 0) if width == 1 else salted.astype(f"u{width // 8}")
        return self[register]


class Wave:
    """Blocks of threads that run at the same time."""

    def __init__(self, launch: Launch, first: int, blocks: int) -> None:
        self.launch, self.kernel, self.settings = launch, launch.kernel, launch.settings
        self.threads = Threads(first, blocks, self.kernel.threads, launch.grid)
        program = launch.program
        self.clocks = Clocks(self.threads, program.synchronises)
        self.device = GlobalMemory(launch.allocations, launch.shadows, self.clocks, launch.report)
        self.shared = SharedMemory(launch.shared_bytes, program.shared_cell, self.clocks, launch.report)
        self.warps = Warps(self.shared, launch.report)
        self.approximate = self.settings.approximate
        self.registers = _Registers(self.kernel.widths, self.threads.number, first + 1)
        self.place = np.zeros(self.threads.number, np.int32)  # the block of code that a thread is at; -1: it has left
        self.waiting = np.zeros(self.threads.number, np.bool_)

    # -- what the generated code calls -------------------------------------------------------------------------

    def get(self, register, index):
        value = self.registers[register]
        return value if index is None or value.ndim == 0 else value[index]

    def put(self, register, value, index) -> None:
        if index is None:
            self.registers[register] = value
            return
        whole = self.registers[register]
        whole = np.full(self.threads.number, whole) if whole.ndim == 0 else whole.copy()
        whole[index] = value
        self.registers[register] = whole

    def special(self, name, index):
        value = self.threads.special[name]
        return value if index is None or value.ndim == 0 else value[index]

    def parameter(self, name, offset, kind):
        """A narrower load has the lower bits."""
        value = self.launch.parameters[name]
        return (value >> value.dtype.type(8 * offset)).astype(kind)

    # -- the order of things -----------------------------------------------------------------------------------

    def run(self) -> None:
        steps = 0
        with np.errstate(all="ignore"):
            together: int | None = 0 if self.launch.schedule is None else None
            while True:
                steps += 1
                self.launch.steps = max(self.launch.steps, steps)
                if self.settings.most_steps and steps > self.settings.most_steps:
                    raise EmulationError(f"{self.kernel.name}: not at an end after {self.settings.most_steps} steps")
                if together is not None:
                    together = self._step(together, None)
                    continue
                chosen = self._choose(steps % TURN == 0)
                if chosen is None:
                    return
                together = self._step(*chosen)

    def _choose(self, last: bool) -> tuple[int, np.ndarray | None] | None:
        """The block of code to run next, and the threads that do (None: all).

        Without a schedule the earliest one, so that threads meet again; or the ``last`` one, in turn: threads that wait
        for others, earlier in the code, would go on for ever.
        """
        ready = (self.place >= 0) & ~self.waiting
        if not ready.any():
            if self.waiting.any():
                raise EmulationError(f"{self.kernel.name}: some threads wait at a barrier for ever")
            return None
        if self.launch.schedule is not None:
            ready &= self._unit(ready)
        in_turn = last and self.launch.schedule is None
        at = int(self.place[ready].max() if in_turn else self.place[ready].min())
        running = ready & (self.place == at)
        return at, None if running.all() else np.flatnonzero(running)

    def _unit(self, ready) -> np.ndarray:
        """The threads of the warp, or the block, whose turn it is."""
        assert self.launch.schedule is not None
        size = 32 if self.settings.unit == "warp" else self.threads.size
        chosen = self.launch.schedule(np.flatnonzero(ready.reshape(-1, size).any(1)))
        return np.arange(len(ready)) // size == chosen

    def _step(self, at: int, index) -> int | None:
        """Runs one block of code. Returns the next one, where all threads of the wave are sure to go there."""
        count = self.threads.number if index is None else len(index)
        holds = self.launch.program.functions[at](self, (index, count))
        end = self.kernel.blocks[at].end
        assert end is not None
        where = slice(None) if index is None else index
        if end.kind == "barrier":
            self.place[where] = end.target
            self.waiting[where] = True
            self._release_barriers()
            next_place = end.target if not self.waiting.any() else None
        elif holds is None:
            self.place[where] = end.target
            next_place = end.target
        else:
            goes = np.where(np.broadcast_to(holds, count), end.target, end.after)
            self.place[where] = goes
            next_place = int(goes[0]) if (goes == goes[0]).all() else None
        if end.kind == "return" and self.waiting.any():
            self._release_barriers()  # those who have left are no longer waited for
        if index is not None or self.launch.schedule is not None or next_place == -1:
            return None
        return next_place

    def _release_barriers(self) -> None:
        """Lets the blocks go on all of whose threads wait."""
        shape = self.threads.blocks, self.threads.size
        waiting, gone = self.waiting.reshape(shape), (self.place < 0).reshape(shape)
        full = np.flatnonzero((waiting | gone).all(1) & waiting.any(1))
        for block in full:
            if gone[block].any():
                self.launch.report("barrier that some threads of the block never reach")
            places = self.place.reshape(shape)[block][waiting[block]]
            if (places != places[0]).any():
                self.launch.report("threads of a block wait at different barriers")
        waiting[full] = False
        self.clocks.barrier(full)
