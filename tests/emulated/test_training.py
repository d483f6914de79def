"""Noise, noisy weights and their gradients as compiled, against the oracle: every kernel and each of its options.

The kernels come with few weights here; ``PTX_EMULATOR=sm_90 pytest tests/backends/triton`` has the whole grid.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from support.gpu_tensors import assert_gradients_near
from support.triton_weights import INTERPRETED, KEY, assert_near, assert_same, make, make_logits, needs_triton

pytestmark = [
    needs_triton,
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled"),
    pytest.mark.usefixtures("emulator"),
]

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.add_noise import add_noise, add_noise_backward
    from diffq_fast.backends.triton.noise import noise
    from diffq_fast.backends.triton.weight_range import weight_range
    from emulated.checks import (
        assert_noise_equals,
        assert_passes_equal,
        assert_ranges_equal,
        assert_uniform_noise_equals,
        unaligned,
    )

FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
COUNTS = (0, 1, 9, 8200)  # 8,200: a whole tile, and one that is masked

# Compute capability, group size, range per group, noise, parametrisation, dtypes of weights and of gradients.
TRAINING = [
    (90, 0, False, "gaussian", "noise", FLOAT, FLOAT),
    (90, 1, False, "uniform", "bits", FLOAT, FLOAT),
    (90, 8, False, "uniform", "bits", FLOAT, FLOAT),
    (90, 8, False, "gaussian", "noise", FLOAT, BF16),
    (90, 64, False, "uniform", "noise", HALF, HALF),
    (90, 1024, False, "gaussian", "bits", FLOAT, FLOAT),
    (90, 4096, False, "uniform", "bits", BF16, BF16),
    (90, 7, False, "gaussian", "bits", FLOAT, HALF),
    (90, 1, True, "uniform", "bits", BF16, BF16),
    (90, 8, True, "gaussian", "noise", FLOAT, FLOAT),
    (90, 64, True, "uniform", "bits", FLOAT, BF16),
    (90, 1024, True, "uniform", "noise", HALF, HALF),
    (90, 4096, True, "gaussian", "bits", FLOAT, FLOAT),
    (90, 7, True, "uniform", "bits", FLOAT, FLOAT),
    (90, 3000, True, "gaussian", "noise", HALF, HALF),
    (80, 0, False, "uniform", "bits", FLOAT, FLOAT),
    (80, 8, False, "gaussian", "bits", FLOAT, FLOAT),
    (80, 8, True, "uniform", "bits", BF16, BF16),
    (80, 7, True, "gaussian", "noise", FLOAT, FLOAT),
    (100, 0, False, "gaussian", "noise", FLOAT, FLOAT),
    (100, 8, False, "uniform", "bits", FLOAT, BF16),
    (100, 1, True, "uniform", "bits", HALF, HALF),
    (100, 7, True, "gaussian", "bits", FLOAT, FLOAT),
]


@pytest.mark.parametrize(("arch", "group_size", "per_group", "noise_kind", "param", "dtype", "grad"), TRAINING)
def test_training_equals_the_oracle(arch, group_size, per_group, noise_kind, param, dtype, grad):
    options = group_size, 2.0, 15.0, param, noise_kind, per_group
    assert_passes_equal(make(COUNTS, dtype), make(COUNTS, grad, seed=3), options)


@pytest.mark.parametrize(
    ("arch", "noise_kind"), [(80, "gaussian"), (90, "uniform"), (90, "gaussian"), (100, "gaussian")]
)
def test_noise_equals_the_oracle(arch, noise_kind):
    assert_noise_equals(noise_kind)


@pytest.mark.parametrize(("group_size", "dtype"), [(0, FLOAT), (8, FLOAT), (7, HALF), (3000, BF16)])
def test_ranges_of_groups_equal_the_oracle(group_size, dtype):
    assert_ranges_equal(dtype, group_size, True)


@pytest.mark.parametrize(("arch", "dtype"), [(90, FLOAT), (90, BF16), (90, HALF), (100, FLOAT)])
def test_ranges_of_tensors_equal_the_oracle(arch, dtype):
    assert_ranges_equal(dtype, 2, False)


# Compute capability, group size, dtypes of weights and of noisy weights.
UNIFORM = [
    (90, 0, FLOAT, FLOAT),
    (90, 1, HALF, HALF),
    (90, 8, FLOAT, BF16),
    (90, 64, FLOAT, FLOAT),
    (90, 7, BF16, BF16),
    (90, 4096, FLOAT, HALF),
    (80, 8, FLOAT, FLOAT),
    (100, 64, FLOAT, FLOAT),
]


@pytest.mark.parametrize(("arch", "group_size", "dtype", "noisy"), UNIFORM)
def test_uniform_noise_of_one_step_equals_the_oracle(arch, group_size, dtype, noisy):
    weights, grads = make(COUNTS, dtype), make(COUNTS, noisy, seed=3)
    assert_uniform_noise_equals([*weights, unaligned(521, dtype)], [*grads, unaligned(521, noisy)], group_size, noisy)


@pytest.mark.parametrize("per_group", [False, True])
def test_ties_nan_and_unaligned_views_equal_the_oracle(per_group):
    tied = unaligned(8193).clamp(-1, 1)
    weights = [tied, torch.tensor([1.0, float("nan"), 2.0]), torch.ones(100), unaligned(8)]
    grads = make([weight.numel() for weight in weights], seed=3)
    grads[0][17], grads[1][0] = float("nan"), float("-inf")
    assert_passes_equal(weights, grads, (8, 2.0, 15.0, "bits", "uniform", per_group))


def test_many_weights_and_mixed_dtypes_equal_the_oracle():
    weights = [*make([1 + 37 * i % 100 for i in range(150)]), *make((9, 520), HALF)]
    weights[3] = make((90,))[0].view(9, 10).t()
    logits, streams = make_logits(weights, 8), list(range(len(weights)))
    options = 8, 2.0, 15.0, "bits", "uniform", False
    noisy, *measured = add_noise(weights, logits, KEY, streams, None, *options)
    expected, *ranges = default.add_noise(weights, logits, KEY, streams, None, *options)
    assert_near(noisy, expected, 2**-10, 2e-4)
    assert_same(measured, ranges)


@pytest.mark.parametrize(("group_size", "per_group", "dtype"), [(8, False, BF16), (8, True, HALF), (7, True, BF16)])
def test_noisy_weights_of_another_dtype_equal_those_cast_to_it(group_size, per_group, dtype):
    weights = [*make((9, 8200)), make((521,), seed=5)[0][1:], torch.tensor([1.0, float("nan")])]
    lists = weights, make_logits(weights, group_size), KEY, list(range(len(weights))), None
    options = group_size, 2.0, 15.0, "bits", "uniform", per_group
    expected, *ranges = add_noise(*lists, *options)
    noisy, *measured = add_noise(*lists, *options, dtype)
    assert_same(noisy, [tensor.to(dtype) for tensor in expected])
    assert_same(measured, ranges)


# Group size, range per group, dtype of gradients, noise.
NEAR = [
    (0, False, BF16, "uniform"),
    (1, False, HALF, "gaussian"),
    (8, False, BF16, "uniform"),
    (64, False, BF16, "gaussian"),
    (4096, False, HALF, "uniform"),
    (7, False, HALF, "uniform"),
    (8, True, HALF, "gaussian"),
    (1024, True, BF16, "uniform"),
    (4096, True, BF16, "uniform"),
    (7, True, BF16, "gaussian"),
]


@pytest.mark.parametrize(("group_size", "per_group", "dtype", "noise_kind"), NEAR)
def test_gradients_of_a_lower_dtype_are_near_those_cast_to_float32(group_size, per_group, dtype, noise_kind):
    """As docs/gpu.md promises. Logits' gradients are sums, which the compiler orders otherwise for another dtype."""
    options = group_size, 2.0, 15.0, "bits", noise_kind, per_group
    for seed in (0, 1):
        weights, grads = make((9, 8200), seed=seed), make((9, 8200), dtype, seed=seed + 3)
        weights[-1].clamp_(-1, 1)
        measured = weight_range(weights, group_size, per_group)
        lists = make_logits(weights, group_size), *measured, KEY, list(range(len(weights)))
        got = add_noise_backward(grads, weights, *lists, *options)
        expected = add_noise_backward([grad.float() for grad in grads], weights, *lists, *options)
        assert_gradients_near(got, expected, grads, weights, lists, options)


@pytest.mark.parametrize("mode", ["random", "low", "high"])
def test_noisy_weights_keep_their_tolerance_whatever_the_approximations(emulator, mode):
    """Steps within 1e-6 of themselves, normals within 5e-5 (docs/philox.md), for any error the PTX manual allows."""
    from ptx.approximations import Approximations

    emulator.settings.approximate = Approximations(mode)
    assert_passes_equal(make((9, 520)), make((9, 520), seed=3), (8, 2.0, 15.0, "bits", "gaussian", False))
    z = noise(KEY, 2, 0, 8192, "gaussian")
    assert_near([z], [default.noise(KEY, 2, 0, 8192, "gaussian")], 0, 5e-5)


def test_training_equals_the_oracle_where_the_assembler_contracts_products(emulator):
    emulator.settings.contract = True
    assert_passes_equal(make((9, 8200)), make((9, 8200), seed=3), (8, 2.0, 15.0, "bits", "uniform", False))
