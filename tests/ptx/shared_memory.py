"""Shared memory of the blocks of a wave, with its checks: a barrier must stand between what two threads do to a place,
unless both read."""

from __future__ import annotations

import numpy as np

from .memory import JUNK, UNSIGNED

_NOBODY, _SEVERAL = 0, -1


class SharedMemory:
    def __init__(self, size: int, cell: int, clocks, report) -> None:
        threads = clocks.threads
        self.size, self.cell, self.clocks, self.report, self.threads = (
            -(-size // 16) * 16,
            cell,
            clocks,
            report,
            threads,
        )
        self.bytes = np.full(threads.blocks * self.size, JUNK, np.uint8)
        self.base = (threads.block - threads.first) * self.size
        cells = len(self.bytes) // cell + 1
        self.writer, self.written_in = np.zeros(cells, np.int32), np.zeros(cells, np.int64)
        self.reader, self.read_in = np.zeros(cells, np.int32), np.zeros(cells, np.int64)

    # -- what the generated code calls -------------------------------------------------------------------------

    def load(self, running, address, access, mask, instruction):
        count = running[1]
        junk = UNSIGNED[access.size](0xA5A5A5A5A5A5A5A5 & ((1 << 8 * access.size) - 1))
        places, who, at = self.access(running, address, access.bytes, mask, instruction)
        result = [np.full(count, junk) for _ in range(access.vector)]
        if len(places):
            self.check_read(who, self.cells_of(at, access.bytes), instruction)
            view = self.bytes.view(UNSIGNED[access.size])
            for i in range(access.vector):
                result[i][places] = view[at // access.size + i]
        return result

    def store(self, running, address, access, values, mask, instruction):
        count = running[1]
        places, who, at = self.access(running, address, access.bytes, mask, instruction)
        if not len(places):
            return
        view = self.bytes.view(UNSIGNED[access.size])
        index = (at // access.size)[:, None] + np.arange(access.vector)
        values = np.stack([np.broadcast_to(value, count)[places] for value in values], 1)
        self.check_write(who, self.cells_of(at, access.bytes), (view[index] != values).any(1), instruction)
        view[index] = values
        if (view[index] != values).any():
            self.report(
                "race: different values written to shared memory by two threads in one instruction", instruction
            )

    # -- checks ------------------------------------------------------------------------------------------------

    def access(self, running, address, size, mask, instruction):
        """Places, threads, and where in ``bytes``; accesses at fault are reported and left out."""
        index, count = running
        places, who = self.threads.active(index, count, mask)
        address = np.broadcast_to(address, count)[places]
        bad = (address % size != 0) | (address < 0) | (address + size > self.size)
        if bad.any():
            self.report(f"misaligned access to shared memory, or one outside of its {self.size} bytes", instruction)
            places, who, address = places[~bad], who[~bad], address[~bad]
        return places, who, address + self.base[who]

    def cells_of(self, at, size: int):
        return (at // self.cell)[:, None] + np.arange(max(1, size // self.cell))

    def _now(self, who):
        """Identities and epochs."""
        return self.threads.identity[who][:, None], self.clocks.epoch[self.threads.block[who]][:, None]

    def check_read(self, who, cells, instruction) -> None:
        mine, epoch = self._now(who)
        writer = self.writer[cells]
        if (writer == _NOBODY).any():
            self.report("read of shared memory that nobody has written", instruction)
        if ((writer != mine) & (writer != _NOBODY) & (self.written_in[cells] == epoch)).any():
            self.report("race: shared memory read before a barrier after another thread's write", instruction)
        others = self.reader[cells]
        several = (others != mine) & (others != _NOBODY) & (self.read_in[cells] == epoch)
        self.reader[cells] = np.where(several, _SEVERAL, mine)
        self.read_in[cells] = epoch

    def check_write(self, who, cells, changed, instruction) -> None:
        mine, epoch = self._now(who)
        writer, reader = self.writer[cells], self.reader[cells]
        others = (writer != mine) & (writer != _NOBODY) & (self.written_in[cells] == epoch)
        if (others.any(1) & changed).any():
            self.report("race: shared memory written by two threads without a barrier between", instruction)
        if ((reader != mine) & (reader != _NOBODY) & (self.read_in[cells] == epoch)).any():
            self.report("race: shared memory written before a barrier after another thread's read", instruction)
        self.writer[cells] = mine
        self.written_in[cells] = epoch
