"""How much memory and disk a file may ask for: a multiple of its own length, unless the caller allows more."""

from __future__ import annotations

RATIO = 10
LEAST = 1 << 26  # bytes that every file may take: 64 MiB


class BudgetError(ValueError):
    """A file that would grow beyond what its length warrants."""


class Budget:
    """Bytes that may be made out of one file.

    Args:
        path: what errors call the file.
        honest_bytes: what is known to be in it; the budget is ten times as much, and 64 MiB.
        max_bytes: the caller's own limit in place of that.
    """

    def __init__(self, path: str, honest_bytes: int, max_bytes: int | None = None) -> None:
        self.path = path
        self.limit = RATIO * honest_bytes + LEAST if max_bytes is None else max_bytes
        self.used = 0

    def take(self, size: int, what: str) -> None:
        """Count ``size`` bytes that are about to be made. Raises BudgetError, before they are, if they are too many."""
        self.used += size
        if self.used > self.limit:
            raise BudgetError(
                f"{self.path}: {what} makes it larger than max_bytes={self.limit:,} (ten times what it holds, and 64 "
                "MiB, if not given); if you trust the file, pass a larger max_bytes (--max-bytes)"
            )
