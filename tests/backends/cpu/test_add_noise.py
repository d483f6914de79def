"""Noisy weights: the compiled core against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.backends import cpu, default
from support.core_cases import COUNTS, DTYPES, EPSILON, GROUP_SIZES, KEY, make_logits, make_weights, ops, options

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("param", ["bits", "noise"])
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def oracle(dtype, group_size, kind, param, per_group):
    weights = make_weights((*COUNTS, 40000), dtype)
    logits = make_logits(weights, group_size)
    arguments = (
        weights,
        logits,
        KEY,
        list(range(len(weights))),
        None,
        *options(group_size, per_group, param, kind),
    )
    noisy, found, extremes = ops.add_noise(*arguments)
    expected, expected_range, expected_extremes = default.add_noise(*arguments)
    assert torch.equal(found, expected_range)
    assert torch.equal(extremes, expected_extremes)
    for got, other in zip(noisy, expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, other, rtol=EPSILON[dtype], atol=1e-4)


def test_many_small_weights_equal_one_call_each():
    weights = make_weights(range(300), torch.float32)
    logits = make_logits(weights, 8)
    streams = [7 * index for index in range(300)]
    noisy, found, _ = ops.add_noise(weights, logits, KEY, streams, None, *options(8))
    for index, stream in enumerate(streams):
        alone = ops.add_noise(weights[index : index + 1], logits[index : index + 1], KEY, [stream], None, *options(8))
        assert torch.equal(noisy[index], alone[0][0])
        assert torch.equal(found[index], alone[1][0])


def test_float64_is_computed_in_float64():
    weights, logits = [torch.randn(40, dtype=torch.float64)], [torch.zeros(5, dtype=torch.float64)]
    noisy, found, _ = ops.add_noise(weights, logits, KEY, [0], None, *options(8))
    assert noisy[0].dtype == found.dtype == torch.float64
    assert torch.equal(noisy[0], default.add_noise(weights, logits, KEY, [0], None, *options(8))[0][0])


def test_half_precision_logits_are_computed_in_float32():
    weights, logits = make_weights((40,), torch.bfloat16), [torch.linspace(-1, 1, 5).to(torch.bfloat16)]
    noisy = ops.add_noise(weights, logits, KEY, [0], None, *options(8))[0]
    assert torch.equal(noisy[0], ops.add_noise(weights, [logits[0].float()], KEY, [0], None, *options(8))[0][0])
