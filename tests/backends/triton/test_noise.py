"""The noise against the oracle: uniforms bit for bit."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from support.triton_weights import KEY, interpreted, needs_triton

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.noise import noise


@interpreted
@pytest.mark.parametrize("begin", [0, 13, 4095, 2**35 - 100])
def test_noise_equals_the_oracle(begin):
    for count in (0, 1, 9, 5000):
        assert torch.equal(noise(KEY, 5, begin, count, "uniform"), default.noise(KEY, 5, begin, count, "uniform"))
        arguments = KEY, 2**32 - 1, begin, count, "gaussian"
        torch.testing.assert_close(noise(*arguments), default.noise(*arguments), rtol=0, atol=2e-6)


@interpreted
def test_an_unknown_kind_of_noise_is_refused():
    with pytest.raises(ValueError, match="noise_kind must be one of 'uniform', 'gaussian', got 'normal'"):
        noise(KEY, 0, 0, 8, "normal")
