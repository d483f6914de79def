"""What the tests on a CUDA device share. It needs torch and the package: ``benchmarks/gpu_check.sh`` copies it."""

from __future__ import annotations

import torch

import diffq_fast.functional  # noqa: F401  (registers the operators)
from diffq_fast.backends import default
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


def assert_gradients_near(got, expected, grads, weights, lists, arguments):
    """Gradients of ``add_noise_backward`` from bfloat16 or float16, and from the same values in float32, as docs/gpu.md
    promises: those of weights are equal but at extremes, those of logits and at extremes are near, as sums are."""
    grads, weights = [each.cpu() for each in grads], [each.cpu() for each in weights]
    logits, ranges, extremes, key, streams = lists
    others = [each.cpu() for each in logits], ranges.cpu(), extremes.cpu(), key.cpu(), streams
    for one, other, sums in zip(
        got[:2], expected[:2], _sums_of_magnitudes(grads, weights, others, arguments), strict=True
    ):
        for ours, theirs, total, weight in zip(one, other, sums, weights, strict=True):
            roundings = _roundings(min(arguments[0] or weight.numel(), weight.numel()), arguments[0])
            bound = roundings * 2.0**-23 * total + (total > 0) * 2.0**-23 * theirs.cpu().abs()
            assert ((ours.cpu() - theirs.cpu()).abs() <= bound).all()
    assert_same([got[2]], [expected[2]])


def _roundings(number, group_size):
    """Of a term of a sum of ``number``: where it is made, and where it is added."""
    ragged = group_size > 4096 or group_size & (group_size - 1) != 0
    return min(number, 48) + 4 + (number // 1024 if ragged else 0)


def _sums_of_magnitudes(grads, weights, lists, arguments):
    """Of the terms of each gradient: for weights 0 but at extremes, for logits. Gradients of the sign of the noise make
    every term positive."""
    key, streams = lists[-2:]
    drawn = [
        default.noise(key, stream, 0, grad.numel(), arguments[4]) for stream, grad in zip(streams, grads, strict=True)
    ]
    aligned = [grad.float().abs() * z.sign().view(grad.shape) for grad, z in zip(grads, drawn, strict=True)]
    of_weights, of_logits, _ = default.add_noise_backward(aligned, weights, *lists, *arguments)
    shares = [(each - own).abs() for each, own in zip(of_weights, aligned, strict=True)]
    return shares, [each.abs() for each in of_logits]
