"""Ranges and extremes: the operators against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference import groups as groups_oracle
from diffq_fast.reference import weight_range as weight_range_oracle
from support.operators import DTYPES, INF, NAN, check, ops, weights_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 4])
def test_opcheck_weight_range(group_size, per_group, dtype):
    check(ops.weight_range.default, weights_of(dtype), group_size, per_group)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_range_equals_the_oracle(dtype, group_size, per_group):
    weights = weights_of(dtype)
    found, extremes = ops.weight_range(weights, group_size, per_group)
    expected = [weight_range_oracle.weight_range(weight, group_size, per_group) for weight in weights]
    assert torch.equal(found, torch.cat(expected))
    assert found.dtype == groups_oracle.compute_dtype(weights[0])
    if per_group:
        assert extremes.shape == (0, 4)
    else:
        rows = [weight_range_oracle.extremes(weight, row) for weight, row in zip(weights, expected, strict=True)]
        assert torch.equal(extremes, torch.cat(rows))


@pytest.mark.parametrize("values", [[1.0, 1.0, 0.0, 0.0, 1.0], [0.0, -0.0], [NAN, 1.0], [1.0, NAN], [INF, 0.0]])
def test_weight_range_of_ties_and_nonfinite_values_equals_the_oracle(values):
    weight = torch.tensor(values)
    found, extremes = ops.weight_range([weight], 2, False)
    expected = weight_range_oracle.weight_range(weight, 2, False)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(extremes, weight_range_oracle.extremes(weight, expected))
    found, _ = ops.weight_range([weight], 2, True)
    torch.testing.assert_close(found, weight_range_oracle.weight_range(weight, 2, True), rtol=0, atol=0, equal_nan=True)
