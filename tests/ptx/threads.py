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
        places = np.arange(count) if mask is None else np.flatnonzero(np.broadcast_to(mask, count))
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
        # Releases of single threads, by their identities: what a whole block has seen, and a thread since its barrier.
        self.seen_releases: list[dict[int, int]] = [{} for _ in range(threads.blocks)]
        self.news: dict[int, dict[int, int]] = {}
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
        if self.published and not before.all():
            for place in zip(*np.nonzero(~before), strict=True):
                known = self._releases_seen(int(who[place[0]])).get(int(other[place]), 0)
                before[place] = (stamp[place] & _RELEASE_MASK) < known
        return before

    def _releases_seen(self, who: int) -> dict[int, int]:
        return _joined(self.seen_releases[who // self.threads.size], self.news.get(who, {}))

    def barrier(self, blocks) -> None:
        """All threads of these blocks (counted within the wave) have met."""
        threads = self.threads
        self.epoch[threads.first + blocks] += 1
        if self.seen is None:
            return
        for block in blocks:
            rows = slice(block * threads.size, (block + 1) * threads.size)
            joint = self.seen[rows].max(0)
            joint[threads.first + block] = self.epoch[threads.first + block]
            self.seen[rows] = joint
        for who in list(self.news):
            block = who // threads.size
            if block in blocks:
                self.seen_releases[block] = _joined(self.seen_releases[block], self.news.pop(who))

    def acquire(self, who: int, address: int) -> None:
        if address in self.published and self.seen is not None:
            seen, releases = self.published[address]
            self.seen[who] = np.maximum(self.seen[who], seen)
            self.news[who] = _joined(self.news.get(who, {}), releases)

    def release(self, who: int, address: int) -> None:
        if self.seen is None:
            return
        self.releases[who] += 1
        seen, releases = self.published.get(address, (self.seen[who], {}))
        releases = _joined(_joined(releases, self._releases_seen(who)), {who + self._first: int(self.releases[who])})
        self.published[address] = np.maximum(seen, self.seen[who]), releases

    @property
    def _first(self) -> int:
        """Identity of the wave's first thread."""
        return int(self.threads.identity[0])


def _joined(one: dict[int, int], other: dict[int, int]) -> dict[int, int]:
    return one | {key: max(value, one.get(key, 0)) for key, value in other.items()}
