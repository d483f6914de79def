"""Whole widths of logits: the core compares logits with thresholds, torch decides what lies near one.

A width must not depend on who computes the sigmoid, and near a threshold the last bit of one decides. So around each
of them lies a band, as wide as the error of any float32 evaluation could be and more; beyond the bands every
evaluation gives the same width, inside them torch's operators give it, as ``bits.whole_bits_from_logits`` does.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.bits import LOGITS_IN_CACHE, MAX_WHOLE_BITS, bits_from_logits, whole_bits, whole_bits_from_logits
from .. import default
from .loading import core
from .registration import kernel

# Float32 bits below 16 were found within 4.3 * 2**-20 of the float64 ones, and adding extra bits rounds once more.
_LARGEST_ERROR = 2.0**-16
_SMALLEST, _LARGEST = 2.0**-7, 16.0  # bits for which that holds
FEWEST_LOGITS = 4096  # logits that are worth a search for thresholds
_WINDOW = 64  # kWidthWindow; torch's vectors are no longer
_MOST_ALONE = 1 << 14  # logits that torch does not share among threads
_PER_THREAD = 1 << 15  # the fewest that it gives to one
_WORTH_GATHERING = 16  # windows: where more than one in so many is in doubt, whole pieces are faster


class _Thresholds(NamedTuple):
    """See ``struct WidthThresholds`` in csrc/core/isa/kernels.h."""

    lowest: int
    below: list[float]
    reached: list[float]


@kernel
def count_widths(widths: Tensor) -> Tensor:
    if widths.device.type != "cpu":
        raise ValueError(f"count_widths: expected widths on the CPU, got them on {widths.device}")
    if widths.dtype != torch.uint8:
        return default.count_widths(widths)
    widths, counts = widths.contiguous(), torch.empty(17, dtype=torch.int64, device="cpu")
    core.count_widths(widths.data_ptr(), widths.numel(), counts.data_ptr(), torch.get_num_threads())
    return counts


@kernel
def widths_from_logits(logits: Tensor, min_bits: float, max_bits: float, param: str, extra_bits: float) -> Tensor:
    rule = min_bits, max_bits, param
    plain = logits.dtype == torch.float32 and logits.dim() == 1 and logits.is_contiguous()
    bounded = _SMALLEST <= min_bits < max_bits <= _LARGEST and abs(extra_bits) <= _LARGEST
    if not (plain and bounded) or logits.numel() < FEWEST_LOGITS:
        return whole_bits_from_logits(logits, *rule, extra_bits)
    thresholds = _thresholds(*rule, extra_bits)
    widths = torch.empty(len(logits), dtype=torch.uint8, device="cpu")
    doubts = torch.empty(-(-len(logits) // _WINDOW), dtype=torch.uint8, device="cpu")
    core.find_widths(
        thresholds, logits.data_ptr(), len(logits), widths.data_ptr(), doubts.data_ptr(), torch.get_num_threads()
    )
    windows = doubts.nonzero()
    if len(windows):
        _decide(logits, windows, widths, rule, extra_bits)
    return widths


def _decide(logits: Tensor, windows: Tensor, widths: Tensor, rule: tuple[float, float, str], extra_bits: float) -> None:
    """Lets torch decide the windows in doubt, each where its vectors lay if all logits went through torch."""
    if len(windows) * _WINDOW * _WORTH_GATHERING <= len(logits) and _begin_at_windows(len(logits)):
        for some in windows.split(_MOST_ALONE // _WINDOW):
            places = (some * _WINDOW + torch.arange(_WINDOW, dtype=torch.int64, device="cpu")).flatten()
            places = places[places < len(logits)]  # a shorter last window stays the last one
            widths[places] = whole_bits(bits_from_logits(logits[places], *rule), extra_bits)
        return
    for piece in (windows * _WINDOW // LOGITS_IN_CACHE).unique().tolist():
        part = slice(piece * LOGITS_IN_CACHE, (piece + 1) * LOGITS_IN_CACHE)
        widths[part] = whole_bits(bits_from_logits(logits[part], *rule), extra_bits)


def _begin_at_windows(count: int) -> bool:
    """Whether torch's threads share the pieces of :func:`whole_bits_from_logits` at windows: vectors are counted from
    where a thread begins, and what is left behind the last one is computed by itself, perhaps to another last bit."""
    sizes = {min(count, LOGITS_IN_CACHE), count % LOGITS_IN_CACHE or LOGITS_IN_CACHE}
    shares = {size: min(torch.get_num_threads(), -(-size // _PER_THREAD)) for size in sizes}
    return all(share == 1 or -(-size // share) % _WINDOW == 0 for size, share in shares.items())


@lru_cache(maxsize=256)
def _thresholds(min_bits: float, max_bits: float, param: str, extra_bits: float) -> _Thresholds:
    halves = torch.arange(2, MAX_WHOLE_BITS + 1, dtype=torch.float64, device="cpu") - 0.5 - extra_bits
    below = _first_logits(halves - _LARGEST_ERROR, min_bits, max_bits, param)
    reached = _first_logits(halves + _LARGEST_ERROR, min_bits, max_bits, param)
    possible = [(low, high) for low, high in zip(below, reached, strict=True) if low < torch.inf and high > -torch.inf]
    lowest = 1 + sum(high == -torch.inf for high in reached)
    return _Thresholds(lowest, [low for low, _ in possible], [high for _, high in possible])


def _first_logits(bits: Tensor, min_bits: float, max_bits: float, param: str) -> list[float]:
    """The smallest float32 logits with so many bits, computed in float64; infinity where none has, minus infinity where
    all have. ``bits``: float64 ``[n]``."""
    smallest, largest = torch.full_like(bits, -_ORDER_OF_INFINITY), torch.full_like(bits, _ORDER_OF_INFINITY)
    while bool((smallest < largest).any()):
        middle = ((smallest + largest) / 2).floor()
        enough = bits_from_logits(_float_in_order(middle).double(), min_bits, max_bits, param) >= bits
        smallest, largest = torch.where(enough, smallest, middle + 1), torch.where(enough, middle, largest)
    return _float_in_order(smallest).tolist()


_ORDER_OF_INFINITY = 0x7F800000


def _float_in_order(order: Tensor) -> Tensor:
    """float32: the ``order``-th one above zero, or for negative numbers below it."""
    magnitude = order.abs().to(torch.int32).view(torch.float32)
    return torch.where(order < 0, -magnitude, magnitude)
