"""Instructions that a warp's 32 threads do together."""

from __future__ import annotations

import functools

import numpy as np

from .arithmetic import maximum, minimum
from .problems import EmulationError

_LANES = np.arange(32)


def _extreme(choose, nan):
    return lambda rows: functools.reduce(lambda a, b: choose(a, b, nan), rows.T)


_REDUCTIONS = {
    "add": lambda rows: rows.sum(1, dtype=rows.dtype),
    "min": lambda rows: rows.min(1),
    "max": lambda rows: rows.max(1),
    "and": lambda rows: np.bitwise_and.reduce(rows, 1),
    "or": lambda rows: np.bitwise_or.reduce(rows, 1),
    "xor": lambda rows: np.bitwise_xor.reduce(rows, 1),
    "min.NaN": _extreme(minimum, True),
    "max.NaN": _extreme(maximum, True),
    "min.number": _extreme(minimum, False),
    "max.number": _extreme(maximum, False),
}


class Warps:
    def __init__(self, shared, report) -> None:
        self.shared, self.report = shared, report

    def _whole(self, running, instruction) -> None:
        """A warp whose threads have parted cannot do it."""
        index, count = running
        whole = count % 32 == 0
        if whole and index is not None:
            rows = index.reshape(-1, 32)
            whole = bool((rows == rows[:, :1] // 32 * 32 + _LANES).all())
        if not whole:
            self.report("a warp's instruction is reached by some of its threads only", instruction)
            raise EmulationError(f"{instruction.text}: reached by some of a warp's threads only")

    def shuffle(self, running, how, value, operand, segments, instruction):
        """shfl.sync: values, and whether each came from a lane within the segment and bounds."""
        self._whole(running, instruction)
        count = running[1]
        lane = np.arange(count) % 32
        operand = np.broadcast_to(operand, count).astype(np.int64) & 31
        segment, clamp = (segments >> 8) & 31, segments & 31
        highest = (lane & segment) | (clamp & ~segment)
        lowest = lane & segment
        source, valid = {
            "bfly": lambda: (lane ^ operand, lane ^ operand <= highest),
            "idx": lambda: (lowest | (operand & ~segment), lowest | (operand & ~segment) <= highest),
            "up": lambda: (lane - operand, lane - operand >= highest),
            "down": lambda: (lane + operand, lane + operand <= highest),
        }[how]()
        source = np.where(valid, source, lane).astype(np.int64)
        return np.broadcast_to(value, count)[np.arange(count) // 32 * 32 + source], valid

    def reduce(self, running, how, value, members, instruction):
        """redux.sync of whole warps"""
        self._whole(running, instruction)
        if (np.asarray(members) != np.uint32(0xFFFFFFFF)).any():
            raise EmulationError(f"{instruction.text}: expected all of a warp's threads as members")
        rows = np.broadcast_to(value, running[1]).reshape(-1, 32)
        return np.repeat(_REDUCTIONS[how](rows), 32)

    def load_matrices(self, running, address, number, transposed, instruction):
        """ldmatrix, b16: lane l gives the address of row l % 8 of matrix l // 8, and gets word l % 4 of row l // 4 of
        each matrix."""
        self._whole(running, instruction)
        who, at = self._rows(running, address, number, instruction)
        self.shared.check_read(who, self.shared.cells_of(at, 16), instruction)
        halves = self.shared.bytes.view(np.uint16)[(at // 2)[:, None] + np.arange(8)].reshape(-1, number, 8, 8)
        words = np.ascontiguousarray(halves.swapaxes(2, 3) if transposed else halves).view(np.uint32)
        return [words[:, matrix].reshape(-1) for matrix in range(number)]

    def store_matrices(self, running, address, values, transposed, instruction):
        """stmatrix, b16"""
        self._whole(running, instruction)
        count = running[1]
        who, at = self._rows(running, address, len(values), instruction)
        words = np.stack([np.broadcast_to(value, count).reshape(-1, 8, 4) for value in values], 1)
        if transposed:
            halves = np.ascontiguousarray(words).view(np.uint16)
            words = np.ascontiguousarray(halves.swapaxes(2, 3)).view(np.uint32)
        rows = words.reshape(-1, 4)
        view, index = self.shared.bytes.view(np.uint32), (at // 4)[:, None] + np.arange(4)
        changed = (view[index] != rows).any(1)
        self.shared.check_write(who, self.shared.cells_of(at, 16), changed, instruction)
        view[index] = rows

    def _rows(self, running, address, number, instruction):
        """Threads that give a row's address, and where the rows are."""
        gives = np.arange(running[1]) % 32 < 8 * number
        places, who, at = self.shared.access(running, address, 16, gives, instruction)
        if len(places) != int(gives.sum()):
            raise EmulationError(f"{instruction.text}: a row outside of shared memory")
        return who, at
