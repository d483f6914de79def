"""How fast a packed file is read, unpacked and multiplied with on this machine, beside its tensors in float32."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..files.safetensors_reader import Progress, open_file, read_header, read_tensors
from ..files.safetensors_writer import TensorSource, write_safetensors
from ..files.tensor_bytes import DTYPE_NAMES, tensor_bytes, tensors_from_bytes
from ..runtime.weight import PackedWeight
from .coding import CodedTensor
from .contents import PackedContents, read_packed
from .save_load import check_activations

BATCHES = (1, 8, 32)


class Work(NamedTuple):
    """Something to measure: with the packed file, and with float32 if that has it; `amount` of `unit` each."""

    name: str
    packed: Callable[[], object]
    float32: Callable[[], object] | None
    amount: float
    unit: str


@dataclass(frozen=True)
class Speed:
    """How long one work took, in seconds: the median of `repetitions`, and the least and the most of them.

    amount, unit: what was worked on, such as millions of weights; the speed is amount / packed.
    """

    name: str
    repetitions: int
    amount: float
    unit: str
    packed: float
    packed_range: tuple[float, float]
    float32: float | None = None
    float32_range: tuple[float, float] | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as fast as float32."""
        return None if self.float32 is None else self.float32 / max(self.packed, 1e-12)


@dataclass(frozen=True)
class SpeedReport:
    """Result of :func:`measure`."""

    path: str
    threads: int
    file_bytes: int
    float32_bytes: int
    speeds: tuple[Speed, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"speeds": [asdict(each) | {"ratio": each.ratio} for each in self.speeds]}

    def table(self) -> str:
        """The report as text; no figure stands without the number of its repetitions."""
        rows = [("", "this file", "least - most", "float32", "least - most", "times as fast", "speed", "repetitions")]
        for each in self.speeds:
            beside = ("-", "-", "-")
            if each.float32 is not None and each.float32_range is not None:
                beside = (_time(each.float32), _range(each.float32_range), f"{each.ratio:.2f}")
            rate = f"{each.amount / max(each.packed, 1e-12):,.0f} {each.unit}/s"
            own = (_time(each.packed), _range(each.packed_range))
            rows.append((each.name, *own, *beside, rate, str(each.repetitions)))
        spaces = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(_placed(row, spaces)).rstrip() for row in rows]
        sizes = f"{self.file_bytes:,} bytes, {self.float32_bytes:,} in float32"
        how = f"medians, on {self.threads} thread{'s' * (self.threads != 1)}, files in the system's cache"
        return "\n".join([*lines, "", f"{self.path}: {sizes}; {how}"])


def measure(
    path: str | os.PathLike[str],
    repetitions: int = 10,
    progress: Progress | None = None,
    activations: str = "float",
) -> SpeedReport:
    """Measure the speeds of a packed file, each in turns with float32, after a first time that does not count.

    Args:
        repetitions: of each measurement, 1 or more.
        progress: called as progress(name of the work, repetitions done, in all).
        activations: of the products, "float" or "int8", see :func:`diffq_fast.load`.

    Raises:
        PackedFileError: the file is damaged. ValueError: repetitions below 1, or other activations.
    """
    if repetitions < 1:
        raise ValueError(f"bench: repetitions must be 1 or more, got {repetitions}")
    check_activations("bench", activations, packed=True)
    path = os.fspath(path)
    contents = read_packed(path)
    with tempfile.TemporaryDirectory(prefix="diffq_fast_bench_") as folder:
        plain = os.path.join(folder, "float32.safetensors")
        _write_float32(contents, plain)
        works = list(_works(contents, path, plain, activations))
        speeds = []
        for place, work in enumerate(works):
            speeds.append(_measured(work, repetitions, progress, (place * repetitions, len(works) * repetitions)))
        sizes = os.path.getsize(path), os.path.getsize(plain)
    return SpeedReport(path, torch.get_num_threads(), *sizes, tuple(speeds))


def _works(contents: PackedContents, path: str, plain: str, activations: str) -> Iterator[Work]:
    weights, size = contents.packed, os.path.getsize(path) / 2**20
    yield Work("read and verify", partial(read_packed, path), partial(_read, plain), size, "MB")
    coded = [weight for weight in weights.values() if isinstance(weight, CodedTensor)]
    if coded:
        count = sum(weight.count for weight in coded) / 1e6
        yield Work("decode levels", lambda: [each.levels() for each in coded], None, count, "M weights")
    made = {name: contents.tensor(name).float() for name in weights}
    if weights:
        millions = sum(weight.count for weight in weights.values()) / 1e6
        copied = [each.clone for each in made.values()]
        yield Work("unpack", lambda: list(map(contents.tensor, weights)), partial(_all, copied), millions, "M weights")
    yield Work("load, in all", lambda: read_packed(path).state_dict(), partial(_read, plain), size, "MB")
    yield from _products(contents, made, activations)


def _all(functions: Sequence[Callable[[], object]]) -> list[object]:
    return [function() for function in functions]


def _products(contents: PackedContents, made: dict[str, Tensor], activations: str) -> Iterator[Work]:
    """Vectors, 1, 8 and 32 of them, times every matrix of the file."""
    matrices = {name: weight for name, weight in contents.packed.items() if len(weight.shape) == 2 and weight.count}
    if not matrices:
        return
    rows = {name: PackedWeight(weight, torch.float32, activations) for name, weight in matrices.items()}
    millions = sum(weight.count for weight in matrices.values()) / 1e6
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        shapes = {name: (batch, made[name].shape[1]) for name in matrices}
        inputs = {
            name: torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            for name, shape in shapes.items()
        }
        packed = [partial(rows[name].linear, each) for name, each in inputs.items()]
        plain = [partial(nn.functional.linear, each, made[name]) for name, each in inputs.items()]
        rounded = ", int8" * (activations == "int8")
        name = f"products, {batch} vector{'s' * (batch != 1)}{rounded}"
        yield Work(name, partial(_all, packed), partial(_all, plain), batch * millions, "M products")


def _measured(work: Work, repetitions: int, progress: Progress | None, place: tuple[int, int]) -> Speed:
    taken: dict[str, list[float]] = {"packed": [], "float32": []}
    turns = [("packed", work.packed)] + ([("float32", work.float32)] if work.float32 else [])
    with torch.no_grad():
        for repetition in range(repetitions + 1):
            for which, run in turns:
                begin = time.perf_counter()
                run()
                taken[which].append(time.perf_counter() - begin)
            if progress is not None and repetition:
                progress(work.name, place[0] + repetition, place[1])
    counted = {which: times[1:] for which, times in taken.items()}
    found: dict[str, Any] = {}
    for which, times in counted.items():
        if times:
            found |= {which: statistics.median(times), f"{which}_range": (min(times), max(times))}
    return Speed(work.name, repetitions, work.amount, work.unit, **found)


def _write_float32(contents: PackedContents, path: str) -> None:
    """The same tensors as an ordinary checkpoint; each is decoded when it is written, and not kept."""
    sources = []
    for name, entry in contents.entries().items():
        dtype = torch.float32 if entry.dtype.is_floating_point else entry.dtype
        data = partial(_float32_bytes, contents, name, dtype)
        sources.append(TensorSource(name, DTYPE_NAMES[dtype], entry.shape, data))
    write_safetensors(path, sources, {"format": "pt"})


def _float32_bytes(contents: PackedContents, name: str, dtype: torch.dtype) -> np.ndarray:
    return tensor_bytes(contents.tensor(name), dtype)


def _read(path: str) -> dict[str, Tensor]:
    with open_file(path) as file:
        header = read_header(file, path)
        return tensors_from_bytes(header, read_tensors(file, header))


def _time(seconds: float) -> str:
    return f"{_milliseconds(seconds)} ms" if seconds < 1 else f"{seconds:,.3g} s"


def _range(pair: tuple[float, float]) -> str:
    return f"{_milliseconds(pair[0])} - {_milliseconds(pair[1])} ms"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.9995 else f"{seconds * 1e3:,.0f}"


def _placed(row: tuple[str, ...], spaces: list[int]) -> list[str]:
    return [
        cell.ljust(space) if not column else cell.rjust(space)
        for column, (cell, space) in enumerate(zip(row, spaces, strict=True))
    ]
