"""The threads of a wave: blocks of threads (CTAs) that run together, and what happened before what among them."""

from __future__ import annotations

import numpy as np

_RELEASES = 20  # bits of a stamp that count its thread's releases; the rest is its block's epoch
_RELEASE_MASK = (1 << _RELEASES) - 1


class Threads:
    """``number`` threads, the blocks ``first`` and following of a grid, ``size`` threads each."""

    def __init__(self, first: int, blocks: int, size: int, grid: int) -> None:
        self.first, self.blocks, self.size, self.grid = first, blocks, size, grid
        self.number = blocks * size
        places = np.arange(self.number)
        self.identity = (first * size + places + 1).astype(np.int32)  # 0 is nobody
        self.block = first + places // size
        self.special = {
            "%tid.x": (places % size).astype(np.uint32),
            "%ctaid.x": self.block.astype(np.uint32) if blocks > 1 else np.uint32(first),
            "%nctaid.x": np.uint32(grid),
            "%ntid.x": np.uint32(size),
            "%laneid": (places % 32).astype(np.uint32),
        }

    def active(self, index, count, mask):
        """Places among the ``count`` running threads, and the threads, where ``mask`` holds."""
        if mask is None:
            places = np.arange(count)
        else:
            places = np.flatnonzero(np.broadcast_to(mask, count))
        return places, places if index is None else index[places]


class Clocks:
    """Happens-before by the PTX memory model: a block's barriers divide its time into epochs; an acquire that reads
    what a release wrote shows a thread all that the releasing one had seen.

    A *stamp* says when an access happened: its block's epoch, and how many releases its thread had made.
    """

    def __init__(self, threads: Threads, synchronising: bool) -> None:
        self.threads = threads
        self.epoch = np.zeros(threads.grid, np.int64)
        # Of thread t: the epochs of each block that t has seen the end of, where programs tell each other anything.
        self.seen = np.zeros((threads.number, threads.grid), np.int32) if synchronising else None
        self.releases = np.zeros(threads.number, np.int64)
        self.seen_releases: dict[int, dict[int, int]] = {}  # of single threads, in the epoch that they were in
        self.published: dict[int, tuple[np.ndarray, dict[int, int]]] = {}  # by address

    def stamps(self, who):
        return (self.epoch[self.threads.block[who]] << _RELEASES) + self.releases[who]

    def ordered(self, who, other, stamp):
        """Whether each access by ``other`` (an identity; ``[accesses, cells]``) at ``stamp`` happened before."""
        threads = self.threads
        block = (other - 1) // threads.size
        mine = threads.block[who][:, None]
        done = stamp >> _RELEASES
        before = (other == threads.identity[who][:, None]) | ((block == mine) & (done < self.epoch[mine]))
        if self.seen is None:
            return before
        before |= (block != mine) & (done < self.seen[who[:, None], np.maximum(block, 0)])
        if self.seen_releases and not before.all():
            for place in zip(*np.nonzero(~before), strict=True):
                known = self.seen_releases.get(int(who[place[0]]), {}).get(int(other[place]), 0)
                before[place] = (stamp[place] & _RELEASE_MASK) < known
        return before

    def barrier(self, blocks) -> None:
        """All threads of these blocks (counted within the wave) have met."""
        threads = self.threads
        self.epoch[threads.first + blocks] += 1
        if self.seen is None:
            return
        for block in blocks:
            rows = range(block * threads.size, (block + 1) * threads.size)
            joint = self.seen[rows.start : rows.stop].max(0)
            joint[threads.first + block] = self.epoch[threads.first + block]
            self.seen[rows.start : rows.stop] = joint
            self._share_releases(rows)

    def _share_releases(self, rows: range) -> None:
        together: dict[int, int] = {}
        for row in rows:
            _join(together, self.seen_releases.get(row, {}))
        if together:
            self.seen_releases.update({row: dict(together) for row in rows})

    def acquire(self, who: int, address: int) -> None:
        if address in self.published and self.seen is not None:
            seen, releases = self.published[address]
            self.seen[who] = np.maximum(self.seen[who], seen)
            _join(self.seen_releases.setdefault(who, {}), releases)

    def release(self, who: int, address: int) -> None:
        if self.seen is None:
            return
        self.releases[who] += 1
        seen, releases = self.published.get(address, (self.seen[who], {}))
        releases = dict(releases)
        _join(releases, self.seen_releases.get(who, {}))
        _join(releases, {int(self.threads.identity[who]): int(self.releases[who])})
        self.published[address] = np.maximum(seen, self.seen[who]), releases


def _join(one: dict[int, int], other: dict[int, int]) -> None:
    for key, value in other.items():
        one[key] = max(one.get(key, 0), value)
