"""What a launch did that it must not do."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

# Two threads that write the same value to one place are harmless on every GPU, and Triton's stores of replicated
# values do it.
SAME_VALUE = "the same value written by two threads, unordered"


class EmulationError(RuntimeError):
    """A launch that cannot go on: a deadlock, or too many steps."""


class Problem(NamedTuple):
    kernel: str
    what: str
    instruction: str
    line: str  # of the source

    def __str__(self) -> str:
        return f"{self.kernel}: {self.what}: {self.instruction} ({self.line})"


class Problems:
    """Each problem that was found, and how often."""

    def __init__(self) -> None:
        self.found: Counter[Problem] = Counter()

    def add(self, kernel, what, instruction=None) -> None:
        text, line = (instruction.text, instruction.line) if instruction else ("", "")
        self.found[Problem(kernel, what, " ".join(text.split()), line)] += 1

    def serious(self) -> list[Problem]:
        return [problem for problem in self.found if problem.what != SAME_VALUE]

    def clear(self) -> None:
        self.found.clear()
