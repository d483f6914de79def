"""Inputs of the compiled core's tests: awkward counts, each dtype."""

from __future__ import annotations

import torch

import diffq_fast.functional  # noqa: F401  (loads the operators)
from diffq_fast.reference.sizes import group_count

ops = torch.ops.diffq_fast
COUNTS = (0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 5000)
GROUP_SIZES = (0, 1, 2, 4, 7, 8, 16, 100, 3000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEY = torch.tensor(-0x123456789ABCDEF)
EPSILON = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def make_weights(counts, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).to(dtype) for count in counts]


def make_logits(weights, group_size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(group_count(w.numel(), group_size), generator=generator) * 2 for w in weights]


def make_widths(weights, group_size, seed=2):
    generator = torch.Generator().manual_seed(seed)
    groups = [group_count(weight.numel(), group_size) for weight in weights]
    return [torch.randint(1, 17, (count,), generator=generator, dtype=torch.uint8) for count in groups]


def assert_all_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one, other)


def options(group_size, per_group=False, param="bits", kind="gaussian"):
    return group_size, 2.0, 15.0, param, kind, per_group
