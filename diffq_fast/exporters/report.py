"""What an export made of each tensor, and how far that is from what the packed file holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..files.safetensors_reader import printable
from ..packed.compare import NO_ERROR, Error, error_of

LISTED = 12  # tensors with an error, the worst first


@dataclass(frozen=True)
class ExportedTensor:
    """One tensor: its name, what it became ("float16", "uint4 in blocks of 32"), its bytes, and its error."""

    name: str
    stored: str
    bytes: int
    error: Error


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    error: over all floating tensors, against the packed file's; its `relative` is the root mean square of the
    differences over that of the tensors. notes: what a user should know besides.
    """

    path: str
    output: str
    format: str
    bytes: int
    tensors: tuple[ExportedTensor, ...]
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> Error:
        return sum((each.error for each in self.tensors), NO_ERROR)

    @property
    def worst(self) -> ExportedTensor | None:
        """The tensor with the largest relative error; None where nothing was exported."""
        return max(self.tensors, key=lambda each: each.error.relative, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; what is infinite is None."""
        tensors = [
            {"name": each.name, "stored": each.stored, "bytes": each.bytes} | _measures(each.error)
            for each in self.tensors
        ]
        own = {name: getattr(self, name) for name in ("path", "output", "format", "bytes")}
        return own | _measures(self.error) | {"tensors": tensors, "notes": list(self.notes)}

    def table(self) -> str:
        """The report as text: kinds of tensors, those with the largest errors, and what all come to."""
        lines = [f"{len(names):>6} x {stored}" for stored, names in _by_kind(self.tensors).items()]
        lines += [f"  note: {note}" for note in self.notes]
        changed = sorted((each for each in self.tensors if each.error.squares), key=lambda each: -each.error.relative)
        if changed:
            lines += ["", "rms error / rms, largest error, of the worst:"]
            for each in changed[:LISTED]:
                lines.append(f"  {each.error.relative:9.3g}  {each.error.largest:9.3g}  {printable(each.name)}")
            lines += [f"  and {len(changed) - LISTED} more with less"] if len(changed) > LISTED else []
            lines += [""]
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """One line: the file, its bytes, and its error."""
        total, worst = self.error, self.worst
        if worst is None or not total.squares:
            told = "no error: the weights are those of the packed file, bit for bit"
        else:
            told = f"rms error {total.relative:.3g} of the weights' rms, worst {worst.error.relative:.3g} in "
            told += printable(worst.name)
        return f"{self.output}: {self.bytes:,} bytes, {len(self.tensors)} tensors; {told}"


def float_error(reference: Tensor, other: Tensor) -> Error:
    """The error of a floating tensor; none for indices and masks, which have no part in that of all."""
    return error_of(reference, other) if reference.is_floating_point() else NO_ERROR


def _by_kind(tensors: Iterable[ExportedTensor]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for each in tensors:
        kinds.setdefault(each.stored, []).append(each.name)
    return kinds


def _measures(error: Error) -> dict[str, float | None]:
    values = {"relative_error": error.relative, "largest_error": error.largest}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
