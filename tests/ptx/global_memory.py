"""Loads, stores and atomic operations of a wave of threads on global memory, with their checks."""

from __future__ import annotations

import numpy as np

from . import memory
from .problems import SAME_VALUE

_JUNK = 0xA5A5A5A5A5A5A5A5
_LONGEST_LOG = 1 << 22  # reads


class GlobalMemory:
    """``allocations`` as one wave of threads sees them. ``order``: of an access that others may wait for: "relaxed",
    "acquire", "release" or "acq_rel"."""

    def __init__(self, allocations, shadows, clocks, report) -> None:
        self.allocations, self.shadows, self.clocks, self.report = allocations, shadows, clocks, report
        self.threads = clocks.threads

    # -- what the generated code calls -------------------------------------------------------------------------

    def load(self, running, address, access, mask, instruction, order=None):
        """A list of ``access.vector`` arrays. Threads that do not load get junk."""
        count, (places, who, address, row) = running[1], self._access(running, address, access, mask, instruction)
        junk = memory.UNSIGNED[access.size](_JUNK & ((1 << 8 * access.size) - 1))
        if not len(places):
            return [junk] * access.vector
        if self.allocations.unwritten and self.allocations.reads_junk(address, access.bytes):
            self.report("read of global memory that nobody has written", instruction)
        self._check_read(who, address, row, access.bytes, instruction, order is not None)
        result = []
        for place in range(access.vector):
            values = memory.read(address + place * access.size, access.size)
            if len(places) < count:
                whole = np.full(count, junk)
                whole[places] = values
                values = whole
            result.append(values)
        if order == "acquire":
            for thread, at in zip(who.tolist(), address.tolist(), strict=True):
                self.clocks.acquire(thread, at)
        return result

    def store(self, running, address, access, values, mask, instruction, order=None):
        count, (places, who, address, row) = running[1], self._access(running, address, access, mask, instruction)
        if not len(places):
            return
        values = [np.broadcast_to(value, count)[places] for value in values]
        old = [memory.read(address + i * access.size, access.size) for i in range(access.vector)]
        changed = np.any([one != other for one, other in zip(old, values, strict=True)], axis=0)
        cells = self.allocations.cells_of(address, access.bytes, row)
        self._check_write(who, cells, row, changed, instruction, order is not None)
        for i, value in enumerate(values):
            memory.write(address + i * access.size, access.size, value)
        self.shadows.wrote(cells, self.threads.identity[who], self.clocks.stamps(who), row, order is not None)
        self._check_together(who, cells, address, access, values, instruction)
        if self.allocations.unwritten:
            self.allocations.mark_written(address, access.bytes)
        if order == "release":
            for thread, at in zip(who.tolist(), address.tolist(), strict=True):
                self.clocks.release(thread, at)

    def atomic(self, running, address, access, operation, value, order, mask, instruction):
        """What stood there before; threads take turns in their order."""
        count, (places, who, address, row) = running[1], self._access(running, address, access, mask, instruction)
        result = np.full(count, _JUNK & ((1 << 8 * access.size) - 1), memory.UNSIGNED[access.size])
        value = np.broadcast_to(value, count)
        if self.allocations.unwritten and self.allocations.reads_junk(address, access.size):
            self.report("atomic operation on global memory that nobody has written", instruction)
        for place, thread, at, own in zip(places, who.tolist(), address, row, strict=True):
            one, thread_array = np.array([at]), np.array([thread])
            if order in ("acquire", "acq_rel"):
                self.clocks.acquire(thread, int(at))
            cells = self.allocations.cells_of(one, access.size, np.array([own]))
            self._check_write(thread_array, cells, np.array([own]), np.array([True]), instruction, True)
            old = memory.read(one, access.size)
            result[place] = old[0]
            memory.write(one, access.size, operation(old, value[place]))
            stamp = self.clocks.stamps(thread_array)
            self.shadows.wrote(cells, self.threads.identity[thread_array], stamp, np.array([own]), True)
            if order in ("release", "acq_rel"):
                self.clocks.release(thread, int(at))
        return result

    # -- checks ------------------------------------------------------------------------------------------------

    def _access(self, running, address, access, mask, instruction):
        """Places, threads, addresses and allocations of the accesses; those at fault are reported and left out."""
        index, count = running
        places, who = self.threads.active(index, count, mask)
        address = np.broadcast_to(address, count)[places]
        crooked = address % access.bytes != 0
        if crooked.any():
            self.report(f"misaligned access of {access.bytes} bytes", instruction)
        row, outside = self.allocations.rows(address, access.bytes)
        outside &= ~crooked
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            near = self.allocations.past_the_end(int(address[first]), int(row[first]))
            self.report(f"access outside of any allocation{near}", instruction)
        if crooked.any() or outside.any():
            good = ~(crooked | outside)
            return places[good], who[good], address[good], row[good]
        return places, who, address, row

    def _check_read(self, who, address, row, size, instruction, synchronises):
        shadows = self.shadows
        if shadows.written[row].any():
            cells = self.allocations.cells_of(address, size, row)
            writer = shadows.writer[cells]
            suspects = (writer != 0) & ~(shadows.written_atomically[cells] & synchronises)
            if (suspects & ~self.clocks.ordered(who, writer, shadows.written_at[cells])).any():
                self.report("race: read of what another thread wrote, unordered", instruction)
        if not synchronises:
            shadows.read(self.allocations, address, size, row, self.threads.identity[who], self.clocks.stamps(who))

    def _check_write(self, who, cells, row, changed, instruction, synchronises):
        shadows = self.shadows
        if shadows.written[row].any():
            writer = shadows.writer[cells]
            suspects = (writer != 0) & ~(shadows.written_atomically[cells] & synchronises)
            raced = (suspects & ~self.clocks.ordered(who, writer, shadows.written_at[cells])).any(1)
            if (raced & changed).any():
                self.report("race: different values written by two threads, unordered", instruction)
            elif raced.any():
                self.report(SAME_VALUE, instruction)
        if shadows.was_read(self.allocations, row):
            reader = shadows.reader[cells]
            if ((reader != 0) & ~self.clocks.ordered(who, reader, shadows.read_at[cells])).any():
                self.report("race: write of what another thread has read, unordered", instruction)

    def _check_together(self, who, cells, address, access, values, instruction):
        """Two threads of one instruction that wrote to one place."""
        lost = (self.shadows.writer[cells] != self.threads.identity[who][:, None]).any(1)
        if lost.any():
            now = [memory.read(address + i * access.size, access.size) for i in range(access.vector)]
            differs = np.any([one != other for one, other in zip(now, values, strict=True)], axis=0)
            together = "race: different values written by two threads in one instruction"
            self.report(together if (differs & lost).any() else SAME_VALUE, instruction)


class Shadows:
    """Who last wrote and last read each cell of the allocations, and when; for the whole of a launch.

    Reads are logged, and entered only when something of the same allocation is written.
    """

    def __init__(self, allocations) -> None:
        number = allocations.cells
        self.writer = memory.sparse_zeros(number, np.int32)
        self.written_at = memory.sparse_zeros(number, np.int64)
        self.written_atomically = memory.sparse_zeros(number, np.bool_)
        self.reader = memory.sparse_zeros(number, np.int32)
        self.read_at = memory.sparse_zeros(number, np.int64)
        rows = len(allocations.starts)
        self.written, self.was_read_in = np.zeros(rows, bool), np.zeros(rows, bool)
        self.log: list = []
        self.logged = 0

    def wrote(self, cells, identity, stamp, row, atomically) -> None:
        self.writer[cells] = identity[:, None]
        self.written_at[cells] = stamp[:, None]
        self.written_atomically[cells] = atomically
        self.written[row] = True

    def read(self, allocations, address, size, row, identity, stamp) -> None:
        self.log.append((address, size, row, identity, stamp))
        self.was_read_in[row] = True
        self.logged += len(address)
        if self.logged > _LONGEST_LOG:
            self._enter(allocations)

    def was_read(self, allocations, row) -> bool:
        """Whether anything of these allocations was read; if so, the log has been entered."""
        if not self.was_read_in[row].any():
            return False
        self._enter(allocations)
        return True

    def _enter(self, allocations) -> None:
        for address, size, row, identity, stamp in self.log:
            cells = allocations.cells_of(address, size, row)
            self.reader[cells] = identity[:, None]
            self.read_at[cells] = stamp[:, None]
        self.log, self.logged = [], 0
