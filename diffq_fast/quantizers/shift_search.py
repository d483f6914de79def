"""The search for the common factor of all steps with which a model of coded levels has a size."""

from __future__ import annotations

import math

from ..reference.log_steps import STEPS_PER_OCTAVE

LEAST_SHIFT, MOST_SHIFT = -16.0 * STEPS_PER_OCTAVE, 24.0 * STEPS_PER_OCTAVE
CLOSE_ENOUGH = 1e-3  # of the budget
LEAST_REACH, CLOSEST = 0.125, 1e-3  # of shifts: half the first that is tried, and what is not told apart


class ShiftSearch:
    """Looks for the smallest shift of all step codes with which the bits fit.

    They fall with it in the large, though not everywhere. By the false position between a shift that fits and one that
    does not, and by the middle where only one of the two moves. Until both are known it goes by ``slope``, at least
    twice as far each time: weights that lie close to their levels take about as many bits with any step of that size.
    """

    def __init__(self, budget: float, slope: float, begin: float) -> None:
        self.aim, self.budget, self.slope, self.shift = budget * (1 - CLOSE_ENOUGH / 2), budget, slope, begin
        self.reach = LEAST_REACH
        self.large: tuple[float, float] | None = None  # shift and bits
        self.fitting: tuple[float, float] | None = None
        self.last_fitted: bool | None = None

    def is_over(self, bits: float) -> bool:
        """Take the bits at the present shift, and go on to the next one unless there is nothing left to gain."""
        fits, again = bits <= self.budget, self.last_fitted == (bits <= self.budget)
        at_end = self.shift == (LEAST_SHIFT if fits else MOST_SHIFT)
        if at_end or (fits and bits >= (1 - CLOSE_ENOUGH) * self.budget):
            return True
        self.last_fitted = fits
        if fits:
            self.fitting = self.shift, bits
        else:
            self.large = self.shift, bits
        self.shift = self._between(again) if self.large and self.fitting else self._beyond(bits)
        return bool(self.large and self.fitting and self.fitting[0] - self.large[0] < CLOSEST)

    def _beyond(self, bits: float) -> float:
        move = (self.aim - bits) / self.slope
        self.reach = max(2 * self.reach, abs(move))
        return min(max(self.shift + math.copysign(self.reach, move), LEAST_SHIFT), MOST_SHIFT)

    def _between(self, again: bool) -> float:
        (low, more), (high, fewer) = self.large or (0.0, 0.0), self.fitting or (0.0, 0.0)
        share = 0.5 if again else (more - self.aim) / (more - fewer)
        return low + min(max(share, 0.05), 0.95) * (high - low)
