"""What one file may cost its reader while it is fuzzed: memory and time in proportion to its length."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SPARE_BYTES = 64 << 20  # of address space, beside what is in use
BYTES_PER_BYTE = 20
CPU_SECONDS = 0.1  # and some in proportion to the length; a wall clock would count pauses


class TooSlowError(Exception):
    """A file took longer than one of its length may."""


def thrice(read: Callable[[], None]) -> None:
    """Call it again where it was too slow: a busy machine may have been."""
    for last in (False, False, True):
        try:
            read()
            return
        except TooSlowError:
            if last:
                raise


@contextmanager
def bounded(length: int, extra_seconds: float) -> Iterator[None]:
    """A file of so many bytes is read inside: more memory is a MemoryError, more time a TooSlowError.

    ``extra_seconds``: of processor time, beside CPU_SECONDS.
    """
    memory = _pages_in_use() * resource.getpagesize() + SPARE_BYTES + BYTES_PER_BYTE * length
    seconds = CPU_SECONDS + extra_seconds

    def too_long(*_: Any) -> None:
        raise TooSlowError(f"more than {seconds:g} s for one file of {length:,} bytes")

    signal.signal(signal.SIGVTALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


_statm: list[int] = []  # the descriptor, opened once in each process


def _pages_in_use() -> int:
    """Of address space."""
    if not _statm:
        _statm.append(os.open("/proc/self/statm", os.O_RDONLY))
    return int(os.pread(_statm[0], 100, 0).split()[0])
