"""Ranges and extremes: the compiled core against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.backends import cpu, default
from support.core_cases import COUNTS, DTYPES, GROUP_SIZES, assert_all_equal, make_weights, ops

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_range_equals_the_oracle(dtype, group_size, per_group):
    weights = make_weights((*COUNTS, 70001), dtype)
    assert_all_equal(
        ops.weight_range(weights, group_size, per_group), default.weight_range(weights, group_size, per_group)
    )


def test_range_of_ties_constants_and_nan_equals_the_oracle():
    weights = [torch.ones(40000), torch.tensor([1.0, -2, 1, -2, 0]), torch.tensor([1.0, float("nan")])]
    weights += [torch.tensor([0.0, -0.0]), torch.full((9,), float("inf")), torch.tensor([-float("inf"), 1.0])]
    found, extremes = ops.weight_range(weights, 2, False)
    expected, places = default.weight_range(weights, 2, False)
    assert torch.equal(extremes, places)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        ops.weight_range(weights, 2, True)[0],
        default.weight_range(weights, 2, True)[0],
        rtol=0,
        atol=0,
        equal_nan=True,
    )
