"""What the tests of the Triton kernels share: weights, and whether Triton's interpreter, or the emulator of compiled
code, runs kernels on the CPU here."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from diffq_fast.reference.options import NoiseOptions
from diffq_fast.reference.sizes import group_count

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EMULATED = os.environ.get("PTX_EMULATOR", "")  # "sm_90": by tests/ptx, as compiled for it
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
interpreted = pytest.mark.skipif(not (INTERPRETED or EMULATED), reason="runs in test_interpreter.py's subprocess")

COUNTS = (0, 1, 7, 8, 9, 1023, 8192, 8200)
KEY = torch.tensor(-0x123456789ABCDEF)
EPSILON = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def make(counts, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).to(dtype) for count in counts]


def make_logits(weights, group_size):
    return [2 * logit for logit in make([group_count(w.numel(), group_size) for w in weights], seed=1)]


def make_widths(count, group_size, choices=range(1, 17)):
    """A width for each group of a weight, drawn from ``choices``."""
    generator = torch.Generator().manual_seed(2)
    chosen = torch.randint(0, len(choices), (group_count(count, group_size),), generator=generator)
    return torch.tensor(list(choices), dtype=torch.uint8)[chosen]


def options_of(group_size, noise_kind="uniform", param="bits", per_group=False):
    return NoiseOptions.from_operator(group_size, 2.0, 15.0, param, noise_kind, per_group)


def assert_near(got, expected, rtol, atol):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, equal_nan=True)


def assert_same(got, expected):
    assert_near(got, expected, 0, 0)
