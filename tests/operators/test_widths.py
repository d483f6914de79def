"""Widths of logits, and how many groups have each: the operators against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference import widths as oracle
from diffq_fast.reference.bits import bits_from_logits, whole_bits
from support.operators import PARAMS, check, ops


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("count", [0, 1, 5000])
@pytest.mark.parametrize("param", PARAMS)
def test_widths_from_logits(param, count):
    logits = torch.randn(count, generator=torch.Generator().manual_seed(count))
    for each in (logits, logits.double(), logits.half(), logits[::2], logits[None]):
        check(ops.widths_from_logits.default, each, 2.0, 15.0, param, 0.0)
        expected = whole_bits(bits_from_logits(each, 2.0, 15.0, param))
        assert torch.equal(ops.widths_from_logits(each, 2.0, 15.0, param, 0.0), expected)


@pytest.mark.parametrize("count", [0, 1, 3, 70001])
def test_count_widths(count):
    widths = torch.randint(0, 256, (count,), dtype=torch.uint8) % 20
    check(ops.count_widths.default, widths)
    counts = ops.count_widths(widths).tolist()
    assert counts[1:] == [int((widths == width).sum()) for width in range(1, 17)]
    assert sum(counts) == count
    assert torch.equal(ops.count_widths(widths), oracle.count_widths(widths))
