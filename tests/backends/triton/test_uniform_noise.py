"""Uniform noise of one step and its gradients against the oracle."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.reference.sizes import group_count
from support.triton_weights import COUNTS, EPSILON, KEY, assert_near, interpreted, make, needs_triton

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.uniform_noise import add_uniform_noise, add_uniform_noise_backward

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def steps_of(weights, group_sizes):
    counts = [group_count(weight.numel(), size) for weight, size in zip(weights, group_sizes, strict=True)]
    return [step.abs() + 0.1 for step in make(counts, seed=1)]


@interpreted
@pytest.mark.parametrize("group_size", [0, 1, 2, 8, 16, 384, 512, 7, 3000, 10000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_passes_equal_the_oracle(dtype, group_size):
    # A program of small groups is one of them: the interpreter would take minutes for thousands.
    counts = [min(count, 300) for count in COUNTS] if 0 < group_size < 8 else COUNTS
    weights, grads = make(counts, dtype), make(counts, dtype, seed=2)
    sizes, streams = [group_size] * len(weights), list(range(3, 3 + len(weights)))
    steps = steps_of(weights, sizes)
    found = add_uniform_noise(weights, steps, KEY, streams, sizes)
    assert_near(found, default.add_uniform_noise(weights, steps, KEY, streams, sizes), EPSILON[dtype], 2e-6)
    found = add_uniform_noise_backward(grads, steps, KEY, streams, sizes)
    assert_near(found, default.add_uniform_noise_backward(grads, steps, KEY, streams, sizes), 1e-5, 1e-4)


@interpreted
def test_weights_of_several_dtypes_and_group_sizes():
    counts, sizes, streams = (8200, 0, 4096, 100, 9), [384, 8, 0, 7, 1], [9, 2, 0, 4, 1]
    weights = [
        weight.to(dtype) for weight, dtype in zip(make(counts), [*DTYPES, torch.float32, torch.float32], strict=True)
    ]
    steps = steps_of(weights, sizes)
    arguments = steps, KEY, streams, sizes
    assert_near(
        add_uniform_noise(weights, *arguments, torch.bfloat16),
        default.add_uniform_noise(weights, *arguments, torch.bfloat16),
        2**-7,
        2e-6,
    )
    found = add_uniform_noise_backward(weights, *arguments)
    assert_near(found, default.add_uniform_noise_backward(weights, *arguments), 1e-5, 1e-4)


def test_other_dtypes_are_left_to_the_oracle():
    weight, step = torch.randn(9).double(), torch.ones(3)
    (found,) = add_uniform_noise([weight], [step], KEY, [0], [3])
    assert torch.equal(found, default.add_uniform_noise([weight], [step], KEY, [0], [3])[0])
