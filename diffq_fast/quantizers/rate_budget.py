"""What a size target asks of coded levels, and the common factor of all steps that gives a size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference.log_steps import (
    HIGHEST_STEP_CODE,
    LOWEST_STEP_CODE,
    STEPS_PER_OCTAVE,
    codes_from_steps,
    steps_from_codes,
)
from ..reference.rate import least_fixed_bits
from ..reference.sizes import ELEMENTS_PER_WORD
from .coded_sizes import Coded, classes_of, least_steps, level_bits, step_code_bits
from .shift_search import CLOSE_ENOUGH, MOST_SHIFT, ShiftSearch

MOST_TRIALS = 24
GOLDEN = 0.6180339887498949
LARGE_GROUPS = 8  # a weight of so few groups moves in jumps, and keeps its codes while others move


class RateBudget:
    """Sizes of a model of coded levels, in bits; see :class:`.sizes.BitBudget`, whose attributes it has.

    Args:
        counts: elements of each weight; none of them 0.
        groups: of each weight.
        plain: parameters that are not quantised, and their bits.
        device: where a size target computes.
    """

    rounds = False  # model_size() is the expected size of the file already
    widths = range(17)

    def __init__(
        self, counts: Sequence[int], groups: Sequence[int], plain: tuple[int, int], device: torch.device
    ) -> None:
        self.device = device
        plain_count, self.plain = plain
        self.quantised = sum(counts)
        self.count = self.quantised + plain_count
        words = sum(16 * -(-count // ELEMENTS_PER_WORD) for count in counts)
        self.fixed = self.plain + words + sum(least_fixed_bits(number) for number in groups)

    def uniform_size(self, bits: float) -> float:
        """The size with so many bits a weight in the mean; the smallest one with 0."""
        return self.fixed + bits * self.quantised


def fitting_codes(coded: Sequence[Coded], budget: float) -> list[Tensor]:
    """Step codes, int16 ``[groups]`` of each weight, that take at most ``budget`` bits, and nearly as many.

    All codes are moved by one real number before they are rounded; then those of weights of many groups once more,
    while the others keep theirs. No step gets so small that a level leaves the 16 bits of a file. Which groups share a
    table is what the present steps give: a file chooses anew, and for the better. Waits for the device.
    """
    if not coded:
        return []
    exact = [_real_codes(each) for each in coded]
    coded = [each._replace(classes=classes_of(each, each.log_steps.detach().exp())) for each in coded]
    found = _fit(coded, exact, [None] * len(coded), budget, 0.0)
    kept = [code if len(code) < LARGE_GROUPS else None for code in found.codes]
    some_are_kept = any(each is not None for each in kept) and any(each is None for each in kept)
    if some_are_kept and found.bits < (1 - CLOSE_ENOUGH) * budget:
        found = _fit(coded, exact, kept, budget, found.shift)
    return found.codes


class _Place(NamedTuple):
    """Where the steps of a weight lie on the scale of codes, float64 ``[groups]``, and the least codes that they may
    have, int16."""

    code: Tensor
    least: Tensor


def _real_codes(coded: Coded) -> _Place:
    """Where the log-steps lie. Those that are codes already are set apart a little, so that they
    move one after the other."""
    exact = coded.log_steps.detach().double() * (STEPS_PER_OCTAVE / math.log(2))
    places = torch.arange(len(exact), dtype=torch.float64, device=exact.device)
    apart = (places * GOLDEN) % 1 * 0.98 - 0.49
    code = torch.where((exact - exact.round()).abs() < 1e-3, exact.round() + apart, exact)
    least = codes_from_steps(least_steps(coded.weight, coded.group_size)) + 1
    return _Place(code, least.clamp(max=HIGHEST_STEP_CODE))


class _Fit(NamedTuple):
    codes: list[Tensor]
    bits: float
    shift: float


def _fit(
    coded: Sequence[Coded], exact: Sequence[_Place], kept: Sequence[Tensor | None], budget: float, begin: float
) -> _Fit:
    """Of the shifts that were tried the one whose bits fit best; those ``kept`` stay as they are.

    If none fits, the largest.
    """
    slope = -sum(each.weight.numel() for each in coded) / STEPS_PER_OCTAVE  # a bit an octave
    search = ShiftSearch(budget, slope, begin)
    best: _Fit | None = None
    for _ in range(MOST_TRIALS):
        shift = search.shift
        codes = _moved(exact, kept, shift)
        bits = _bits(coded, codes)
        if bits <= budget and (best is None or bits > best.bits):
            best = _Fit(codes, bits, shift)
        if search.is_over(bits):
            break
    if best is None:
        codes = _moved(exact, kept, MOST_SHIFT)
        best = _Fit(codes, _bits(coded, codes), MOST_SHIFT)
    return best


def _moved(exact: Sequence[_Place], kept: Sequence[Tensor | None], shift: float) -> list[Tensor]:
    return [
        place.least.maximum((place.code + shift).round().clamp(LOWEST_STEP_CODE, HIGHEST_STEP_CODE).to(torch.int16))
        if own is None
        else own
        for place, own in zip(exact, kept, strict=True)
    ]


def _bits(coded: Sequence[Coded], codes: Sequence[Tensor]) -> float:
    steps = [steps_from_codes(code) for code in codes]
    moved = [each._replace(log_steps=step.log()) for each, step in zip(coded, steps, strict=True)]
    total = float(step_code_bits(moved))
    for each, step in zip(coded, steps, strict=True):
        total += float(level_bits(each._replace(weight=each.weight.detach()), step))
    return total
