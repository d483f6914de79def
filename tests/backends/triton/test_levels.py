"""The divisions that make levels round as the oracle's do, at every place where it could matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffq_fast.reference.bits import step_from_bits
from ptx.arithmetic import fma

SINGLE = np.float32
ROUNDING = SINGLE(12582912.0)


def near_quotient(dividend, divisor):
    """``levels._near_quotient``, each operation rounded once."""
    inverse = SINGLE(1) / divisor
    lacking = fma(inverse, -divisor, SINGLE(1)) * inverse
    return fma(dividend, inverse, dividend * lacking), inverse


def neighbours(values, number=8):
    """The float32 numbers at most so many steps away from each value."""
    return (values.view(np.int32)[:, None] + np.arange(-number, number + 1, dtype=np.int32)).view(SINGLE).ravel()


@pytest.mark.parametrize("width", range(1, 17))
def test_a_near_quotient_by_a_step_turns_levels_where_the_exact_one_does(width):
    """The two quotients differ by less than two units in the last place, so no other share can make a difference."""
    step = step_from_bits(torch.tensor([float(width)])).numpy()[0]
    turning = ((np.arange(2**width - 1) + 0.5) * float(step)).astype(SINGLE)
    share = np.concatenate([neighbours(turning), neighbours(SINGLE([1.0])), SINGLE([0.0, 2.0**-140])])
    share = share[(share >= 0) & (share <= 1)]
    level, _ = near_quotient(share, step)
    assert np.array_equal((level + ROUNDING) - ROUNDING, np.rint(share / step))
    assert level.max() + ROUNDING <= SINGLE(2**width - 1) + ROUNDING
    assert not np.array_equal(np.rint(share * (1 / step)), np.rint(share / step)) or width < 3  # it does matter


def test_a_corrected_quotient_is_the_nearest_one():
    """Divisors of many mantissas, all of whose bits are one among them, and dividends next to hard cases: quotients
    half-way between two numbers, or nearly."""
    generator = np.random.default_rng(0)
    divisor = np.concatenate([neighbours(SINGLE([1.0, 2.0, 1.5]), 40), generator.uniform(1, 2, 20000).astype(SINGLE)])
    divisor = (divisor * SINGLE(2.0) ** generator.integers(-59, 59, len(divisor))).astype(SINGLE)
    share = generator.uniform(0.5, 1, len(divisor))
    between = (share.astype(SINGLE).astype(np.float64) + 2.0**-25) * divisor
    hard = neighbours(between.astype(SINGLE), 2)
    repeated = np.repeat(divisor, 5)
    quotient, inverse = near_quotient(hard, repeated)
    corrected = fma(fma(quotient, -repeated, hard), inverse, quotient)
    assert np.array_equal(corrected, hard / repeated)
