"""Log size and bits during training: rows of a CSV file, and scalars for TensorBoard."""

from __future__ import annotations

import csv
import errno
import io
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files.atomic_file import atomic_file


class BitsLog:
    """Writes the size in MB and the mean bits of each weight, every so many steps.

    In the training loop::

        log = BitsLog(quantizer, csv="bits.csv", every=100)
        ...
        log.step(step, loss=loss, price=target.price)

    A logged step waits for the device; the others do nothing. In distributed training, let one process log.

    Args:
        quantizer: a DiffQuantizer or RateQuantizer, whose weights have bits of their own.
        csv: path of a file with a header and one row per logged step, each written whole by one system call. An
            existing file is continued: a last line that a crash cut off is removed, and so are the rows from the
            first new step on, which a training resumed from a checkpoint logs again.
        tensorboard: a ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar``. Scalars
            ``size_mb``, ``bits/<weight>``, and the caller's under their own names.
        every: log the steps that this number divides.

    Raises:
        ValueError: there is nothing to write to, or ``every`` is not positive. TypeError: a quantizer of another kind.
    """

    def __init__(
        self,
        quantizer: Any,
        *,
        csv: str | os.PathLike[str] | None = None,
        tensorboard: Any = None,
        every: int = 1,
    ) -> None:
        if csv is None and tensorboard is None:
            raise ValueError("BitsLog: expected csv, tensorboard or both, got neither")
        if not hasattr(quantizer, "bits_per_weight"):
            expected = "a quantizer that learns bits (DiffQuantizer, RateQuantizer)"
            raise TypeError(f"BitsLog: expected {expected}, got {type(quantizer).__name__}")
        if not every >= 1:
            raise ValueError(f"BitsLog: every must be at least 1, got {every}")
        self.quantizer = quantizer
        self.tensorboard = tensorboard
        self.every = every
        self._table = None if csv is None else CsvTable(Path(csv))

    def step(self, step: int, **scalars: Any) -> None:
        """Log a step, if it is one of those that are logged.

        Args:
            step: its number, which grows from call to call.
            scalars: further values (numbers or 0-dim tensors); always the same names.

        Raises:
            ValueError: the CSV file has other columns or lines that are no rows, or a name is taken. TypeError: the
                step is no whole number. OSError: the row could not be written whole; the file is as it was before.
        """
        step = operator.index(step)
        if step % self.every:
            return
        bits = self.quantizer.bits_per_weight()
        values = {"size_mb": self.quantizer.true_model_size()}
        values |= {f"bits/{name}": mean for name, mean in bits.items()}
        taken = (values.keys() | {"step"}) & scalars.keys()
        if taken:
            raise ValueError(f"BitsLog.step: {', '.join(sorted(taken))} is logged already; name it otherwise")
        values |= {name: float(value) for name, value in scalars.items()}
        if self._table is not None:
            self._table.append({"step": step, **values})
        if self.tensorboard is not None:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)


class CsvTable:
    """A CSV file that grows by whole rows, whose first column is the step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; the first one decides the columns of a new file, and must have those of an existing one."""
        if self._columns is None:
            self._begin(list(row), int(row["step"]))
        if self._columns != list(row):
            raise self._misfit(list(row), self._columns or [])
        self._write(_line(list(row.values())))

    def _begin(self, columns: list[str], step: int) -> None:
        if self._path.exists() and not self._path.is_file():
            raise ValueError(f"BitsLog: {self._path} is not a regular file; give the path of a new or ordinary one")
        stored = self._path.read_bytes() if self._path.exists() else b""
        whole = stored[: stored.rfind(b"\n") + 1]  # what follows was cut off by a crash
        lines = self._lines(self._decoded(whole))
        rows = [row for _, row in lines]
        if rows and rows[0] != columns:
            raise self._misfit(columns, rows[0])
        steps = [self._step_of(row, line, len(columns)) for line, row in lines[1:]]
        kept = [row for row, logged in zip(rows[1:], steps, strict=True) if logged < step]
        if len(kept) + 1 != len(rows) or whole != stored:
            with atomic_file(self._path) as file:
                file.write("".join(_line(row) for row in [columns, *kept]).encode())
        self._columns = columns

    def _decoded(self, stored: bytes) -> str:
        try:
            return stored.decode()
        except UnicodeDecodeError as error:
            line = stored[: error.start].count(b"\n") + 1
            raise ValueError(f"BitsLog: {self._path}: line {line} is not UTF-8; give the path of a new file") from None

    def _lines(self, text: str) -> list[tuple[int, list[str]]]:
        """Rows, each with the number of its last line."""
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise self._foreign(reader.line_num, f"is no row of a CSV file ({error})") from None

    def _step_of(self, row: list[str], line: int, columns: int) -> int:
        if len(row) != columns:
            raise self._foreign(line, f"should have {columns} columns, found {len(row)}")
        try:
            step, _ = int(row[0]), list(map(float, row[1:]))
        except ValueError:
            seen = ", ".join(map(repr, row))
            raise self._foreign(line, f"should have a step's number and numbers, found {seen:.60}") from None
        return step

    def _foreign(self, line: int, problem: str) -> ValueError:
        return ValueError(f"BitsLog: {self._path}: line {line} {problem}; repair it, or give the path of a new file")

    def _write(self, line: str) -> None:
        """One system call for the whole row, so that a killed process leaves no part of one.

        Where the disk takes only a part, the file is cut back to what it was, and the step raises.
        """
        data = line.encode()
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        try:
            before = os.fstat(handle).st_size
            if os.write(handle, data) < len(data):
                os.ftruncate(handle, before)
                raise OSError(errno.ENOSPC, "BitsLog: only a part of the row could be written", str(self._path))
        finally:
            os.close(handle)

    def _misfit(self, given: Sequence[str], stored: Sequence[str]) -> ValueError:
        differing = sorted(set(given) ^ set(stored)) or ["their order"]
        return ValueError(
            f"BitsLog: {self._path} has other columns than this step (differing: {', '.join(differing)}); log the "
            "same weights and scalars at every step, or give the path of a new file"
        )


def _line(values: Sequence[Any]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()
