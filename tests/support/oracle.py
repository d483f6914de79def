"""Inputs of the oracle's tests."""

from __future__ import annotations

from diffq_fast.reference.add_noise import noisy_weight, noisy_weight_backward
from diffq_fast.reference.options import NoiseOptions
from diffq_fast.reference.sizes import MAX_WIDTH
from diffq_fast.reference.weight_range import weight_range

WIDTHS = range(1, MAX_WIDTH + 1)


NAN, INF = float("nan"), float("inf")


def noisy_of(weight, logit, z, group_size, **options):
    return noisy_weight(weight, logit, z, options_of(group_size, **options))


def backward_of(grad, weight, logit, z, group_size, **options):
    options = options_of(group_size, **options)
    ranges = weight_range(weight, group_size, options.per_group)
    return noisy_weight_backward(grad, weight, logit, ranges, z, options)


def options_of(group_size, *, per_group=False, **options):
    return NoiseOptions(group_size, range_scope="group" if per_group else "tensor", **options)


def assert_close_to_the_largest(found, expected, tolerance=1e-6):
    """Every difference is at most ``tolerance`` times the largest expected magnitude."""
    assert found.shape == expected.shape
    largest = expected.abs().max().item()
    assert largest > 0
    assert (found - expected).abs().max().item() <= tolerance * largest
