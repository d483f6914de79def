"""How many bits a scale of the steps costs, and which scale has the size that is asked for: from samples of the rows.

A sample of each weight's rows is held in memory: a hundred scales can be tried while the checkpoint is read once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .rounding import Price, bits_of_levels, round_weight
from .steps import BIT_PRICE, Sensitivity

SAMPLE_ELEMENTS = 1 << 16  # of one weight
TABLE_BITS = 8 * 40  # of a weight's streams: heads and states, about
LOWEST_EXPONENT, HIGHEST_EXPONENT = -24.0, 10.0  # of the scale, whose root is a step in units of a mean element


@dataclass(frozen=True)
class Sample:
    """Some rows of one weight, and what they stand for.

    relative: whether the importance is only relative, in units of the weight's own signal.
    """

    name: str
    rows: Tensor
    sensitivity: Sensitivity
    count: int
    row_count: int
    relative: bool

    @property
    def signal(self) -> float:
        """What replacing the whole weight by zeros would cost, about."""
        each = self.sensitivity.importance @ self.rows.square().sum(1)
        return float(each) * self.sensitivity.column_cost * self.count / max(self.rows.numel(), 1)

    def scaled(self, factor: float) -> Sample:
        """The same with every importance multiplied."""
        return replace(self, sensitivity=self.sensitivity.scaled(factor))


@dataclass(frozen=True)
class Estimate:
    """bits: of the coded weights in the file. noise, signal: the cost of the errors, and of dropping everything."""

    bits: float
    noise: float
    signal: float

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.bits + other.bits, self.noise + other.noise, self.signal + other.signal)

    @property
    def quality(self) -> float:
        """Signal to noise in decibels, 10 · log10(signal / noise)."""
        return decibels(self.signal, self.noise)


def decibels(signal: float, noise: float) -> float:
    """10 · log10(signal / noise); infinite without noise."""
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else math.inf


def sample_of(name: str, matrix: Tensor, sensitivity: Sensitivity, relative: bool) -> Sample:
    """Rows at even distances, copied, so that the weight itself can go."""
    every = max(1, matrix.numel() // SAMPLE_ELEMENTS)
    chosen = torch.arange(0, len(matrix), min(every, len(matrix)), dtype=torch.int64, device="cpu")
    smallest = None if sensitivity.smallest is None else sensitivity.smallest[chosen]
    importance = sensitivity.importance[chosen].clone()
    kept = replace(sensitivity, importance=importance, feedback=None, across=None, smallest=smallest)
    return Sample(name, matrix[chosen].clone(), kept, matrix.numel(), len(matrix), relative)


def estimate(sample: Sample, scale: float) -> Estimate:
    """Size and error of one weight at this scale of the steps."""
    codes, steps = sample.sensitivity.steps(scale)
    cost = sample.sensitivity.importance * sample.sensitivity.column_cost
    levels = round_weight(sample.rows, steps, cost)
    price = Price(BIT_PRICE * scale, *bits_of_levels(levels))
    levels = round_weight(sample.rows, steps, cost, price=price)
    noise = float(cost @ (sample.rows - levels * steps[:, None]).square().sum(1)) * sample.count / levels.numel()
    bits = entropy(levels) * sample.count + entropy(codes) * sample.row_count + TABLE_BITS
    return Estimate(bits, noise, sample.signal)


def entropy(values: Tensor) -> float:
    """Bits of a value, by how often each one occurs."""
    counts = torch.unique(values, return_counts=True)[1].to(torch.float64)
    shares = counts / counts.sum()
    return float(-(shares * torch.log2(shares)).sum())


def in_one_unit(samples: Sequence[Sample]) -> dict[str, float]:
    """What to multiply each weight's importance by, by name, so that an element's mean signal is 1.

    Calibrated weights keep what they are worth against each other; any other one is worth their mean.
    """
    known = [sample for sample in samples if not sample.relative]
    count, signal = sum(each.count for each in known), sum(each.signal for each in known)
    factor = count / signal if count and signal > 0 else 1.0
    return {each.name: 1.0 if each.relative else factor for each in samples}


def scale_for(wanted: Callable[[float], bool], *, rising: bool, precision: float = 2e-3) -> float:
    """The scale at which ``wanted`` changes, on the side where it holds.

    Args:
        wanted: of a scale.
        rising: whether it holds for small scales (a quality) or for large ones (a size).
        precision: of the scale's logarithm to base 2.

    Raises:
        ValueError: it holds nowhere.
    """
    low, high = LOWEST_EXPONENT, HIGHEST_EXPONENT
    holds, fails = (low, high) if rising else (high, low)
    if wanted(2.0**fails):
        return 2.0**fails
    if not wanted(2.0**holds):
        raise ValueError("pack: no step gives what is asked for; ask for more bits, or for less quality")
    while abs(holds - fails) > precision:
        middle = (holds + fails) / 2
        holds, fails = (middle, fails) if wanted(2.0**middle) else (holds, middle)
    return 2.0**holds
