"""What differs between two files of weights, packed ones or ordinary safetensors checkpoints, and by how much."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..files.safetensors_reader import Progress, open_file, printable, read_header
from ..files.tensor_bytes import DTYPE_NAMES, DTYPES
from ..quantizers.stored_input import StoredInput
from .checkpoint import Checkpoint, open_checkpoint
from .contents import PackedContents, read_packed
from .header import FORMAT
from .report import inspect

Entries = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
COMPARED_AT_ONCE = 1 << 22  # elements, of which float64 copies are made


class Error(NamedTuple):
    """How far one tensor is from another.

    differing: elements that are not equal (NaN equals NaN). largest: of the absolute differences. squares: their
    squares' sum. reference: the sum of the squares of the tensor that was compared with. Infinite where a NaN or an
    infinity stands against another value.
    """

    differing: int
    largest: float
    squares: float
    reference: float

    @property
    def relative(self) -> float:
        """Root of the mean square of the differences over that of the reference's elements."""
        if not self.squares:
            return 0.0
        return math.sqrt(self.squares / self.reference) if self.reference else math.inf

    def __add__(self, more: Any) -> Error:
        """That of the two tensors' elements together."""
        largest = max(self.largest, more.largest)
        squares, reference = self.squares + more.squares, self.reference + more.reference
        return Error(self.differing + more.differing, largest, squares, reference)


NO_ERROR = Error(0, 0.0, 0.0, 0.0)


def error_of(reference: Tensor, other: Tensor) -> Error:
    """How far `other` is from `reference`, of the same number of elements, in float64."""
    error = NO_ERROR
    one, two = reference.reshape(-1), other.reshape(-1)
    for begin in range(0, one.numel(), COMPARED_AT_ONCE):
        first, second = (each[begin : begin + COMPARED_AT_ONCE] for each in (one, two))
        error += _error_of_part(first, second)
    return error


def _error_of_part(first: Tensor, second: Tensor) -> Error:
    exact, inexact = (each.to(torch.complex128 if each.is_complex() else torch.float64) for each in (first, second))
    integers = not (first.is_floating_point() or first.is_complex() or second.is_floating_point())
    unequal = first.to(torch.int64) != second.to(torch.int64) if integers else exact != inexact
    unequal = unequal & ~(exact.isnan() & inexact.isnan())
    finite = exact[exact.isfinite()]
    reference = float(finite.abs().square().sum())
    differing = int(unequal.sum())
    if not differing:
        return Error(0, 0.0, 0.0, reference)
    distances = (exact[unequal] - inexact[unequal]).abs()
    if not bool(torch.isfinite(distances).all()):
        return Error(differing, math.inf, math.inf, reference)
    return Error(differing, float(distances.max()), float(distances.square().sum()), reference)


class Weights(Protocol):
    """A file of weights that is open to be compared. entries: name -> shape and dtype, tied names too.

    inputs: how inputs of layers are rounded, by the layer's name.
    """

    file_bytes: int
    entries: Entries
    inputs: Mapping[str, StoredInput]

    def tensor(self, name: str) -> Tensor: ...

    def bytes_of(self, name: str) -> int:
        """What the file keeps for it; a tied name's is that of what it is tied to."""


class PackedWeights:
    """A packed file."""

    def __init__(self, path: str) -> None:
        self._contents: PackedContents = read_packed(path)
        report = inspect(path)
        self.file_bytes, self.inputs = report.file_bytes, self._contents.activations
        self._bytes = {weight.name: weight.bytes for weight in report.weights}
        entries = self._contents.entries()
        self.entries: Entries = {name: (each.shape, each.dtype) for name, each in entries.items()}

    def tensor(self, name: str) -> Tensor:
        return self._contents.tensor(name)

    def bytes_of(self, name: str) -> int:
        stored = self._contents.ties.get(name, name)
        if stored in self._bytes:
            return self._bytes[stored]
        plain = self._contents.plain[stored]
        half = self._contents.half.get(stored, torch.float16) != torch.float16
        return plain.numel() * (2 if half else plain.element_size())


class PlainWeights:
    """An ordinary checkpoint; tensors are read one by one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self.file_bytes = checkpoint, checkpoint.header.file_bytes
        self.inputs: Mapping[str, StoredInput] = {}
        tensors = checkpoint.header.tensors
        self.entries: Entries = {name: (each.shape, DTYPES[each.dtype]) for name, each in tensors.items()}

    def tensor(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name)

    def bytes_of(self, name: str) -> int:
        return self._checkpoint.header.tensors[name].byte_count


@contextmanager
def open_weights(path: str | os.PathLike[str]) -> Iterator[Weights]:
    """Open a packed file or an ordinary checkpoint.

    Raises:
        PackedFileError: it is neither, or is damaged. OSError: it cannot be read.
    """
    path = os.fspath(path)
    with open_file(path) as file:
        packed = read_header(file, path).metadata.get("format") == FORMAT
    if packed:
        yield PackedWeights(path)
    else:
        with open_checkpoint(path) as checkpoint:
            yield PlainWeights(checkpoint)


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that is not the same in both files.

    what: "values", "dtype" (with the values or not), "shape", "only in the first" or "only in the second".
    shapes, dtypes, bytes: in the first file and in the second, None where it is not there.
    elements, differing: how many, and how many of them are not equal; largest: absolute difference. relative: root mean
    square of the differences over that of the first file's elements. None where the tensors cannot be compared.
    """

    name: str
    what: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    bytes: tuple[int | None, int | None]
    elements: int
    differing: int | None = None
    largest: float | None = None
    relative: float | None = None

    @property
    def bits(self) -> tuple[float | None, float | None]:
        """Bits of an element in the first file and in the second."""
        first, second = (None if size is None else 8 * size / max(self.elements, 1) for size in self.bytes)
        return first, second


@dataclass(frozen=True)
class Comparison:
    """Result of :func:`compare`.

    tensors: names in either file. differences: of those that are not the same; no others are listed.
    relative: as in TensorDifference, over all floating tensors of the same shape. file_bytes: of both files.
    activations: how the inputs of layers are rounded in both, None: not at all; of those that are not the same.
    """

    paths: tuple[str, str]
    file_bytes: tuple[int, int]
    tensors: int
    differences: tuple[TensorDifference, ...]
    relative: float
    activations: Mapping[str, tuple[StoredInput | None, StoredInput | None]]

    @property
    def equal(self) -> bool:
        """Whether both hold the same tensors, in name, shape, dtype and every value, and round the same inputs in the
        same way; how they keep tensors may differ."""
        return not self.differences and not self.activations

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; what is infinite is None."""
        differences = []
        for each in self.differences:
            values = asdict(each) | {"bits": each.bits}
            differences.append(values | {name: _finite(values[name]) for name in ("largest", "relative")})
        own = {"relative": _finite(self.relative), "equal": self.equal}
        inputs = {name: [each and each._asdict() for each in pair] for name, pair in self.activations.items()}
        return asdict(self) | own | {"differences": differences, "activations": inputs}


def compare(
    first: str | os.PathLike[str], second: str | os.PathLike[str], progress: Progress | None = None
) -> Comparison:
    """Compare two files of weights, tensor by tensor, by the values that a model would get.

    Args:
        first, second: packed files, or ordinary safetensors checkpoints. Errors are counted against the first.
        progress: called as progress(tensor name, tensors done, tensors in all).

    Raises:
        PackedFileError: one of them is damaged, or no safetensors file. OSError: it cannot be read.
    """
    with ExitStack() as stack:
        one, two = (stack.enter_context(open_weights(path)) for path in (first, second))
        names = list(dict.fromkeys([*one.entries, *two.entries]))
        differences, overall = [], NO_ERROR
        for done, name in enumerate(names, 1):
            difference, error = _compare_tensor(name, one, two)
            overall += error if one.entries.get(name, ((), torch.bool))[1].is_floating_point else NO_ERROR
            differences += [difference] if difference else []
            if progress is not None:
                progress(name, done, len(names))
        paths, sizes = (os.fspath(first), os.fspath(second)), (one.file_bytes, two.file_bytes)
        inputs = {name: (one.inputs.get(name), two.inputs.get(name)) for name in {**one.inputs, **two.inputs}}
    inputs = {name: pair for name, pair in inputs.items() if pair[0] != pair[1]}
    return Comparison(paths, sizes, len(names), tuple(differences), overall.relative, inputs)


def _compare_tensor(name: str, one: Weights, two: Weights) -> tuple[TensorDifference | None, Error]:
    """The difference of a tensor, or None, and its error where the shapes are the same."""
    first, second = one.entries.get(name), two.entries.get(name)
    shapes = first and first[0], second and second[0]
    dtypes = first and DTYPE_NAMES[first[1]], second and DTYPE_NAMES[second[1]]
    sizes = one.bytes_of(name) if first else None, two.bytes_of(name) if second else None
    elements = math.prod(shapes[0] if shapes[0] is not None else shapes[1] or ())
    if first is None or second is None:
        what = "only in the second" if first is None else "only in the first"
        return TensorDifference(name, what, shapes, dtypes, sizes, elements), NO_ERROR
    if first[0] != second[0]:
        return TensorDifference(name, "shape", shapes, dtypes, sizes, elements), NO_ERROR
    error = error_of(one.tensor(name), two.tensor(name))
    if not error.differing and first[1] == second[1]:
        return None, error
    what = "values" if first[1] == second[1] else "dtype"
    measured = error.differing, error.largest, error.relative
    return TensorDifference(name, what, shapes, dtypes, sizes, elements, *measured), error


def comparison_table(comparison: Comparison) -> str:
    """The comparison as text: one line for each tensor that differs, then what all come to."""
    rows: list[tuple[str, ...]] = [("tensor", "differs in", "elements", "largest", "rms/rms", "bits", "bytes")]
    for each in comparison.differences:
        what = each.what
        if what in ("shape", "dtype"):
            pair = each.shapes if what == "shape" else each.dtypes
            what += f" {_shown(pair[0])} -> {_shown(pair[1])}"
        count = "-" if each.differing is None else f"{each.differing:,} of {each.elements:,}"
        errors = ["-" if value is None else f"{value:.3g}" for value in (each.largest, each.relative)]
        bits = " -> ".join("-" if value is None else f"{value:.2f}" for value in each.bits)
        sizes = " -> ".join("-" if value is None else f"{value:,}" for value in each.bytes)
        rows.append((printable(each.name), what, count, *errors, bits, sizes))
    spaces = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(space) for cell, space in zip(row, spaces, strict=True)).rstrip()
        for row in (rows if comparison.differences else [])
    ]
    for name, inputs in comparison.activations.items():
        shown = ("as it is" if one is None else f"{one.bits} bits, range {one.range:.6g}" for one in inputs)
        lines.append(f"input of {printable(name) or 'the model'}: {' -> '.join(shown)}")
    lines += [""] if lines else []
    differ, both = len(comparison.differences), " and ".join(f"{size:,}" for size in comparison.file_bytes)
    found = f"all {comparison.tensors} tensors are equal"
    if differ:
        found = (
            f"{differ} of {comparison.tensors} tensors differ, rms error {comparison.relative:.3g} of the first's rms"
        )
    return "\n".join([*lines, f"{found}; files of {both} bytes"])


def _shown(value: object) -> str:
    return "x".join(map(str, value)) or "scalar" if isinstance(value, tuple) else str(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
