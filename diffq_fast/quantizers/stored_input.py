"""How the input of one layer is rounded, as a packed file has it. No torch: files are looked at without."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAST_BITS, MOST_BITS = 2, 15  # one bit has no level beside zero


class StoredInput(NamedTuple):
    """Whole bits, the range (a float32 number), and, of learned bits, the logit exactly, where it is kept."""

    bits: int
    range: float
    logit: float | None = None

    @property
    def step(self) -> float:
        """The distance of two levels, what other runtimes call the scale: range / (2**(bits - 1) - 1) in float32."""
        return float(np.float32(self.range) / np.float32(2 ** (self.bits - 1) - 1))
