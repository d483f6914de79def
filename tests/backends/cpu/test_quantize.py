"""Levels of weights, and weights of levels: the compiled core against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.backends import cpu, default
from support.core_cases import assert_all_equal, ops

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])


def oracle():
    weight = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0, -0.0, 1e-45])
    widths = torch.tensor([3], dtype=torch.uint8)
    for lo, hi in (
        (-1.0, 1.0),
        (0.0, 0.0),
        (float("nan"), float("nan")),
        (-3e38, 3e38),
        (-float("inf"), 1.0),
    ):
        found = torch.tensor([[lo, hi]])
        got = ops.quantize([weight], [widths], found, 0, False)
        assert_all_equal(got, default.quantize([weight], [widths], found, 0, False))
        assert got[0].min() >= 0
        assert got[0].max() <= 7
