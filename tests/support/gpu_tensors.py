"""What the tests on a CUDA device share. It needs torch and the package: ``benchmarks/gpu_check.sh`` copies it."""

from __future__ import annotations

import torch

import diffq_fast.functional  # noqa: F401  (registers the operators)
from diffq_fast.reference.sizes import group_count

ops = torch.ops.diffq_fast

COUNTS = (0, 1, 7, 8, 9, 1023, 1025, 8191, 8192, 8193, 100_003)
EPSILON = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}
KEY = torch.tensor(-0x123456789ABCDEF)


def make(counts, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).to(dtype) for count in counts]


def make_logits(weights, group_size):
    return [2 * logit for logit in make([group_count(w.numel(), group_size) for w in weights], seed=1)]


def cuda(tensors):
    return [tensor.cuda() for tensor in tensors]


def options(group_size=8, per_group=False, param="bits", noise_kind="uniform"):
    return group_size, 2.0, 15.0, param, noise_kind, per_group


def assert_near(got, expected, rtol, atol):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=rtol, atol=atol, equal_nan=True)


def assert_same(got, expected):
    assert_near(got, expected, 0, 0)
