"""Global memory is the process's own: where a launch may touch it, and what it has not written yet."""

from __future__ import annotations

import mmap
from typing import NamedTuple

import numpy as np

_BASE, _TOP = 1 << 16, 1 << 47  # of a process's addresses
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
JUNK = 0xA5  # the bytes of memory that nobody has written
_MAP_NORESERVE = 0x4000


class _Everything:
    """All addresses of the process as one array."""

    def __init__(self, size: int) -> None:
        shape = ((_TOP - _BASE) // size,)
        kind = np.dtype(UNSIGNED[size]).str
        self.__array_interface__ = {"data": (_BASE, False), "shape": shape, "typestr": kind, "version": 3}


_AT = {size: np.asarray(_Everything(size)) for size in UNSIGNED}


def read(address, size: int):
    """Unsigned integers of ``size`` bytes at aligned addresses."""
    return _AT[size][(address - _BASE) // size]


def write(address, size: int, values) -> None:
    _AT[size][(address - _BASE) // size] = values


def sparse_zeros(number: int, kind) -> np.ndarray:
    """Zeros that take memory only where they are touched."""
    size = max(number, 1) * np.dtype(kind).itemsize
    if size < 1 << 20:
        return np.zeros(number, kind)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return np.frombuffer(area, kind, number)


class Unwritten(NamedTuple):
    """An allocation that began as junk: where, and whether each of its bytes still is."""

    start: int
    junk: np.ndarray


class Allocations:
    """Where a launch may read and write. Accesses name an allocation by its row, and parts of it by cells of ``cell``
    bytes, which are numbered through all allocations."""

    def __init__(self, ranges, unwritten: list[Unwritten], cell: int) -> None:
        merged: list[list[int]] = []
        for start, stop in sorted(ranges):
            if merged and start < merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], stop)
            else:
                merged.append([start, stop])
        self.starts = np.array([start for start, _ in merged], np.int64)
        self.stops = np.array([stop for _, stop in merged], np.int64)
        self.cell = cell
        sizes = -(-(self.stops - self.starts) // cell) + 1
        self.first_cells = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.unwritten = [each for each in unwritten if each.junk.any()]

    @property
    def cells(self) -> int:
        return int(self.first_cells[-1])

    def rows(self, address, size: int):
        """The allocation of each access, and which accesses lie outside of all."""
        row = np.searchsorted(self.starts, address, "right") - 1
        if not len(self.starts):
            return row, np.ones(len(address), bool)
        return row, (row < 0) | (address + size > self.stops[np.maximum(row, 0)])

    def past_the_end(self, address: int, row: int) -> str:
        """Where an access outside lies, in words."""
        if row < 0:
            return ""
        return f", {address - int(self.stops[row])} bytes past an allocation of {self.stops[row] - self.starts[row]}"

    def cells_of(self, address, size: int, row):
        """Of each access, ``[accesses, cells]``."""
        first = self.first_cells[row] + (address - self.starts[row]) // self.cell
        return first[:, None] + np.arange(max(1, size // self.cell))

    def reads_junk(self, address, size: int) -> bool:
        """Whether an access reads bytes that nobody has written. Bytes that changed behind the emulator's back, by
        torch, count as written."""
        for each in self.unwritten:
            inside = address[(address >= each.start) & (address < each.start + each.junk.size)]
            if inside.size:
                at = (inside - each.start)[:, None] + np.arange(size)
                same = _AT[1][inside[:, None] + np.arange(size) - _BASE] == JUNK
                if (each.junk[at] & same).all(1).any():
                    return True
        return False

    def mark_written(self, address, size: int) -> None:
        for each in self.unwritten:
            inside = address[(address >= each.start) & (address < each.start + each.junk.size)]
            if inside.size:
                each.junk[(inside - each.start)[:, None] + np.arange(size)] = False
