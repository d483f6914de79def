"""Noise: the compiled core against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.backends import cpu, default
from support.core_cases import COUNTS, KEY, ops

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])


@pytest.mark.parametrize("first", [0, 1, 13, 2**35 - 100])
def oracle(first):
    for count in COUNTS:
        uniform = ops.noise(KEY, 5, first, count, "uniform")
        assert torch.equal(uniform, default.noise(KEY, 5, first, count, "uniform"))
        gaussian = ops.noise(KEY, 2**32 - 1, first, count, "gaussian")
        torch.testing.assert_close(gaussian, default.noise(KEY, 2**32 - 1, first, count, "gaussian"), rtol=0, atol=4e-6)
