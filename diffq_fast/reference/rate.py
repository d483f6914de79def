"""What coded levels cost: bits of each level under a density that is fitted to counts, and of whole streams.

Everything stays on the counts' device, and nothing waits for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .level_code import BLOCK_BITS, BLOCK_CONTENTS, SLOTS, block_counts, lane_count, may_be_longer
from .sizes import stream_words

HIGHEST_LEVEL = 128  # of a table of costs; coarser levels stand for wider distributions
# The mixture: logistic bells with these multiples of the levels' deviation, weighed by so many rounds of
# expectation-maximisation.
BELLS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
ROUNDS = 20
LOGISTIC = 1.702  # brings a logistic bell next to the normal one of the same scale
LEAST_PROBABILITY = 2.0**-24
LEAST_DEVIATION = 1 / 8
_HEAD_BITS, _STATE_BITS, _SIZE_BITS, _ESCAPE_BITS = 40.0, 24, 16, 16


def level_costs(counts: Tensor) -> Tensor:
    """Bits of each level, ``-log2 P(level)``, with P a smooth density's mass over one step.

    The density is the likeliest mixture of :data:`BELLS` around the levels' mean. Its masses are differences of
    sigmoids on the side where both are small, so they keep their relative accuracy in float32.

    Args:
        counts: float32 ``[weights, 2 * HIGHEST_LEVEL + 1]``: how often each level from -HIGHEST_LEVEL on occurs.

    Returns:
        float32 of the same shape, each between 0 and 24.
    """
    levels = torch.arange(-HIGHEST_LEVEL, HIGHEST_LEVEL + 1, dtype=torch.float32, device=counts.device)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    distance = levels - (share @ levels)[:, None]
    deviation = (share * distance.square()).sum(1).sqrt().clamp(min=LEAST_DEVIATION)
    scales = torch.tensor(BELLS, dtype=torch.float32, device=counts.device) * deviation[:, None] / LOGISTIC
    distance, scales = distance.abs()[:, :, None], scales[:, None, :]
    masses = torch.sigmoid((0.5 - distance) / scales) - torch.sigmoid((-0.5 - distance) / scales)
    weights = masses.new_full((len(counts), len(BELLS), 1), 1 / len(BELLS))
    for _ in range(ROUNDS):
        ratio = share[:, None, :] / (masses @ weights).clamp(min=LEAST_PROBABILITY).mT
        weights = weights * (ratio @ masses).mT
    return -(masses @ weights).squeeze(-1).clamp(LEAST_PROBABILITY, 1).log2()


def entropy_of_sample(counts: Tensor) -> Tensor:
    """Bits per level of what a sample ``[weights, levels]`` was drawn from, by Miller and Madow's estimate."""
    number = counts.sum(1).clamp(min=1)
    unseen = (counts.count_nonzero(1) - 1).clamp(min=0) / (2 * 0.6931471805599453 * number)
    return _entropy(counts, number[:, None]) + unseen


def stream_bits(counts: Tensor, total: int) -> Tensor:
    """float64 ``[streams]``: bits of streams of ``total`` values with these counts, float64 ``[streams, values]``.

    As :func:`.level_code.choose_code` has them, without its choice of low bits: tables, states, levels; or plain bits.
    """
    number = counts.new_full((), float(max(total, 1)))
    used = counts > 0
    rate = _entropy(counts, number)
    whole = fixed_bits(total, rate) + 8 * _span(used) + number * rate
    rare = used & (counts <= 1 + int((total * 1.4426950408889634 / SLOTS + 8) / 16))
    escaped = torch.where(rare, counts, 0).sum(1)
    kept = torch.cat([torch.where(rare, 0, counts), escaped[:, None]], 1)
    rate = _entropy(kept, number)
    escaping = fixed_bits(total, rate) + 8 * (_span(used & ~rare) + 1) + number * rate + _ESCAPE_BITS * escaped
    width = torch.ceil(torch.log2(_span(used).clamp(min=1)))
    plain = 32 + width * stream_words(total, 1) * 32
    return torch.minimum(torch.minimum(whole, escaping), plain)


def fixed_bits(total: int, rate: Tensor) -> Tensor:
    """Bits of streams of ``total`` values, ``rate`` bits each, beside tables and levels: head, states, block sizes."""
    chosen = torch.zeros_like(rate, dtype=torch.int64)
    for bits in BLOCK_BITS[:-1]:
        chosen = chosen + (rate * (1 << bits) < BLOCK_CONTENTS)
    for index, bits in enumerate(BLOCK_BITS[:-1]):
        if may_be_longer(total, bits):
            chosen = chosen + ((chosen == index) & (rate * (1 << bits) < 4 * BLOCK_CONTENTS))
    fixed = torch.full_like(rate, least_fixed_bits(total))
    for index, bits in enumerate(BLOCK_BITS[:-1]):
        fixed = torch.where(chosen == index, _fixed_bits(total, bits), fixed)
    return fixed


def least_fixed_bits(total: int) -> float:
    """The same of the longest blocks."""
    return _fixed_bits(total, BLOCK_BITS[-1])


def _fixed_bits(total: int, block_bits: int) -> float:
    blocks = block_counts(total, block_bits)
    return _HEAD_BITS + sum(_SIZE_BITS + _STATE_BITS * lane_count(each, block_bits) for each in blocks)


def _entropy(counts: Tensor, number: Tensor) -> Tensor:
    """Bits per value; a share below one slot of the coder's table costs as one slot."""
    share = counts / number
    return -(share * share.clamp(min=1 / SLOTS, max=1).log2()).sum(1)


def _span(used: Tensor) -> Tensor:
    """How many values there are from the lowest used to the highest."""
    places = torch.arange(used.shape[1], dtype=torch.float64, device=used.device)
    highest = torch.where(used, places, -1).amax(1)
    lowest = torch.where(used, places, float(used.shape[1])).amin(1)
    return (highest - lowest + 1).clamp(min=0)
