"""Ranges and extremes equal the oracle's bit for bit."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from support.triton_weights import COUNTS, EPSILON, assert_same, interpreted, make, needs_triton

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.weight_range import weight_range


@interpreted
@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("group_size", [0, 8, 7, 3000])
def test_range_equals_the_oracle(dtype, group_size):
    weights = make((*COUNTS, 20000), dtype)
    for per_group in (False, True):
        assert_same(
            weight_range(weights, group_size, per_group),
            default.weight_range(weights, group_size, per_group),
        )


@interpreted
def test_range_of_ties_constants_nan_and_infinities_equals_the_oracle():
    nan, inf = float("nan"), float("inf")
    weights = [torch.ones(20000), torch.tensor([1.0, -2, 1, -2, 0]), torch.tensor([1.0, nan])]
    weights += [torch.tensor([0.0, -0.0]), torch.full((9,), inf), torch.tensor([-inf, 1.0])]
    weights += [torch.cat([torch.randn(9000), torch.tensor([nan])])]
    for per_group in (False, True):
        assert_same(weight_range(weights, 2, per_group), default.weight_range(weights, 2, per_group))
