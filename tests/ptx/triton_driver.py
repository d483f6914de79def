"""A Triton driver whose device is the emulator: kernels are compiled and launched the ordinary way, on CPU tensors."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget

from . import allocations
from .launch import Launch, Settings, program_of
from .memory import Allocations
from .problems import EmulationError, Problems

WARP = 32


class Emulator:
    """What launches in a ``with emulated(...)`` share. ``edit``: what to make of a kernel's PTX before it runs (for
    mutants). ``steps``: of the longest wave so far."""

    def __init__(self, arch: int, settings: Settings, tensors: allocations.LivingTensors) -> None:
        self.arch, self.settings, self.tensors = arch, settings, tensors
        self.problems = Problems()
        self.launches: Counter[str] = Counter()
        self.opcodes: Counter[str] = Counter()
        self.steps = 0
        self.edit: Callable[[str], str] = lambda ptx: ptx

    def launch(self, grid: int, ptx: str, metadata: Any, arguments: list[tuple[str, Any]]) -> None:
        program = program_of(self.edit(ptx), self.settings.contract and metadata.enable_fp_fusion)
        unwritten = allocations.unwritten() if self.settings.ends_only is None else []  # others would have written it
        where = Allocations(self.tensors.ranges(), unwritten, program.cell)
        parameters = _parameters(program.kernel, arguments)
        self.launches[program.kernel.name] += 1
        self.opcodes += program.opcodes
        launch = Launch(program, grid, parameters, metadata.shared, where, self.settings, self.problems)
        launch.run()
        self.steps = max(self.steps, launch.steps)


def _flat(kind: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """Types and values of arguments, tuples taken apart, without those that are compiled in."""
    if isinstance(kind, tuple):
        for one, other in zip(kind, value, strict=True):
            yield from _flat(one, other)
    elif kind != "constexpr":
        yield kind, value


def _parameters(kernel, arguments: list[tuple[str, Any]]) -> dict[str, Any]:
    """The values of a kernel's parameters. Triton appends two of its own, scratch memory that these kernels lack."""
    if len(kernel.parameters) != len(arguments) + 2:
        raise EmulationError(
            f"{kernel.name}: expected {len(kernel.parameters) - 2} arguments, got {[kind for kind, _ in arguments]}"
        )
    bits = [_bits(kind, value) for kind, value in arguments] + [np.uint64(0)] * 2
    return {name: value for (_, name), value in zip(kernel.parameters, bits, strict=True)}


def _bits(kind: str, value: Any):
    if kind.startswith("*"):
        return np.uint64(value.data_ptr() if hasattr(value, "data_ptr") else value)
    if kind == "fp32":
        return np.float32(value).view(np.uint32)
    if kind == "fp64":
        return np.float64(value).view(np.uint64)
    width = max(int(kind[1:]), 8)
    return np.dtype(f"u{width // 8}").type(int(value) & ((1 << width) - 1))


class _Driver:
    """What ``triton.runtime`` asks of a driver."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.utils = SimpleNamespace(
            load_binary=lambda name, binary, shared, device: (None, binary.decode(), 0, 0, 1024),
            get_device_properties=lambda device: {
                "max_shared_mem": 232448 if emulator.arch >= 90 else 166912,
                "multiprocessor_count": 132,
                "warpSize": WARP,
            },
        )

    @staticmethod
    def launcher_cls(source, metadata):
        def launch(x, y, z, stream, function, packed, launch_metadata, enter, leave, *values):
            if (y, z) != (1, 1) or getattr(metadata, "num_ctas", 1) != 1:
                raise EmulationError(f"{metadata.name}: expected a grid of one dimension, no clusters, got {(x, y, z)}")
            arguments = list(_flat(tuple(source.signature.values()), values))
            # Triton keeps a compiled kernel with its launcher: the emulator of today may be another one.
            triton.runtime.driver.active.emulator.launch(x, function, metadata, arguments)

        return launch

    def get_current_device(self):
        return self.emulator.arch

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.emulator.arch, WARP)

    def get_active_torch_device(self):
        return torch.device("cpu")


@functools.cache
def _compiler():
    """Triton's compiler for NVIDIA, but the assembler leaves the PTX as it is."""
    original = triton.backends.backends["nvidia"]

    class PtxCompiler(original.compiler):
        def make_cubin(self, source, metadata, options, capability):
            return source.encode()

        def hash(self):
            return f"{super().hash()}-ptx-as-binary"  # its own places in Triton's cache

    return original, type(original)(compiler=PtxCompiler, driver=original.driver)


@contextlib.contextmanager
def emulated(arch: int = 90, settings: Settings | None = None) -> Iterator[Emulator]:
    """Within, Triton kernels launched on CPU tensors are compiled for sm_``arch`` and run here.

    The emulator that is given has the ``problems`` that were found; nothing is raised for them.
    """
    original, replaced = _compiler()
    driver = triton.runtime.driver
    before = driver._active
    with allocations.LivingTensors() as tensors, allocations.junk_in_empty_tensors():
        emulator = Emulator(arch, settings or Settings(), tensors)
        triton.backends.backends["nvidia"] = replaced
        driver.set_active(_Driver(emulator))
        try:
            yield emulator
        finally:
            triton.backends.backends["nvidia"] = original
            driver._active = before
