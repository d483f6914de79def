"""``torch.cuda`` and device "cuda" on a machine without a GPU: its tensors lie in the CPU's memory, and Triton's
kernels are emulated. What is not here fails as it does in a PyTorch without CUDA."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .recording import Recording

NAME = "dry run, no GPU"
CPU = torch.device("cpu")


def _is_cuda(value: Any) -> bool:
    if isinstance(value, str):
        return value.split(":")[0] == "cuda"
    return isinstance(value, torch.device) and value.type == "cuda"


class CudaOnCpu(TorchFunctionMode):
    """Puts on the CPU what is asked for on a GPU. A tensor moved from one to the other is a copy there too."""

    moves = (torch.Tensor.cuda, torch.Tensor.cpu)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.moves:
            return args[0].clone()
        moved = any(map(_is_cuda, (*args, *kwargs.values())))
        if not moved:
            return function(*args, **kwargs)
        args = [CPU if _is_cuda(value) else value for value in args]
        kwargs = {name: CPU if _is_cuda(value) else value for name, value in kwargs.items()}
        result = function(*args, **kwargs)
        return result.clone() if result is args[0] else result


class Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu"):
        return super().__new__(cls, CPU if _is_cuda(device) else device)


class Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if _is_cuda(device_type) else device_type, *args, **kwargs)


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing
        self.seconds: float | None = None

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, stop: Event) -> float:
        if not (self.enable_timing and stop.enable_timing) or self.seconds is None or stop.seconds is None:
            raise ValueError("Event: elapsed_time: expected two events that time and were recorded")
        return 1e3 * (stop.seconds - self.seconds)


class Stream:
    cuda_stream = 0

    def wait_stream(self, stream: Stream) -> None:
        assert isinstance(stream, Stream)

    def synchronize(self) -> None:
        pass


class CUDAGraph:
    """Replays what was run while it was recorded."""

    def __init__(self) -> None:
        self.recording: Recording | None = None

    def replay(self) -> None:
        if self.recording is None:
            raise RuntimeError("CUDAGraph: replay: nothing was recorded")
        self.recording.replay()


class Profile:
    """As many events of a device as kernels were launched, and operators of PyTorch called."""

    def __init__(self, activities: list[Any]) -> None:
        assert activities == [torch.profiler.ProfilerActivity.CUDA]
        self.recording = Recording(Stand.emulator)

    def __enter__(self) -> Profile:
        self.recording.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.recording.__exit__(*error)

    def events(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(device_type=torch.autograd.DeviceType.CUDA)] * len(self.recording.calls)


@contextlib.contextmanager
def _graph(graph: CUDAGraph) -> Iterator[None]:
    with Recording(Stand.emulator) as graph.recording:
        yield


def _checked_compile(function: Any, *, dynamic: bool, mode: str | None = None, options: Any = None) -> Any:
    """The function as it is: only the settings are looked at."""
    torch._TorchCompileInductorWrapper(mode or (None if options else "default"), options, dynamic)
    return function


class Stand:
    """What the stand-in uses."""

    emulator: Any = None


CUDA = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "device": lambda device: contextlib.nullcontext(),
    "get_device_name": lambda device=None: NAME,
    "get_device_properties": lambda device=None: SimpleNamespace(name=NAME, multi_processor_count=1),
    "synchronize": lambda device=None: None,
    "set_sync_debug_mode": lambda mode: None,
    "is_current_stream_capturing": lambda: False,
    "mem_get_info": lambda device=None: (0, 0),
    "memory_allocated": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
    "reset_peak_memory_stats": lambda device=None: None,
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "set_rng_state": lambda state, device=None: None,
    "Event": Event,
    "Stream": Stream,
    "stream": lambda stream: contextlib.nullcontext(),
    "current_stream": lambda device=None: Stream(),
    "CUDAGraph": CUDAGraph,
    "graph": _graph,
}


def install(emulator: Any) -> None:
    """For the rest of the process."""
    Stand.emulator = emulator
    for name, value in CUDA.items():
        setattr(torch.cuda, name, value)
    for owner, name, value in (
        (torch, "Generator", Generator),
        (torch, "autocast", Autocast),
        (torch, "compile", _checked_compile),
        (torch.profiler, "profile", Profile),
    ):
        setattr(owner, name, value)
    CudaOnCpu().__enter__()
    _launch_kernels_for_cpu_tensors()


def _launch_kernels_for_cpu_tensors() -> None:
    import diffq_fast.functional  # noqa: F401  (registers the operators; with a device "cuda", Triton's too)
    from diffq_fast._ops import NAMESPACE
    from diffq_fast.backends.triton import registration

    Stand.library = torch.library.Library(NAMESPACE, "IMPL")
    warnings.filterwarnings("ignore", "Warning only once for all operators")
    for launcher in registration._LAUNCHERS:
        kernel = registration._on_its_device(launcher)
        Stand.library.impl(launcher.__name__, kernel, "CPU", allow_override=True)
