"""Ranges and extremes: the oracle against diffq 0.2.4, numpy and decoders written apart."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference import weight_range as oracle
from support.oracle import INF, NAN


@pytest.mark.parametrize(
    ("values", "bounds", "found"),
    [
        ([2.0], [2, 2], [0, 0, 1, 1]),
        ([1.0, -2.0, 5.0], [-2, 5], [1, 2, 1, 1]),
        ([4.0, 4.0, 4.0], [4, 4], [0, 0, 3, 3]),
        ([1.0, 0.0, 1.0, 0.0, 0.5, 1.0], [0, 1], [1, 0, 2, 3]),
        ([0.0, -0.0, 0.0], [0, 0], [0, 0, 3, 3]),
        ([INF, -INF, 0.0], [-INF, INF], [1, 0, 1, 1]),
        ([], [0, 0], [0, 0, 0, 0]),
    ],
)
def test_range_and_extremes_of_a_weight(values, bounds, found):
    weight = torch.tensor(values)
    range_ = oracle.weight_range(weight, 2, False)
    assert range_.tolist() == [bounds]
    extremes = oracle.extremes(weight, range_)
    assert extremes.dtype == torch.int64
    assert extremes.tolist() == [found]


@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_nan_makes_the_range_nan_and_the_extremes_zero(position):
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    weight[position] = NAN
    range_ = oracle.weight_range(weight, 0, False)
    assert range_.isnan().all()
    assert oracle.extremes(weight, range_).tolist() == [[0, 0, 0, 0]]
    per_group = oracle.weight_range(weight, 2, True)
    assert per_group.isnan().all(1).tolist() == [group == position // 2 for group in range(3)]


@pytest.mark.parametrize("group_size", [0, 1, 2, 3, 7, 50])
def test_range_per_group(group_size):
    torch.manual_seed(3)
    weight = torch.randn(7) - 10  # a padding with zeros would be the largest element
    size = group_size or 7
    expected = [[min(group), max(group)] for group in (weight[at : at + size].tolist() for at in range(0, 7, size))]
    assert oracle.weight_range(weight, group_size, True).tolist() == expected
    assert oracle.weight_range(weight[:0], group_size, True).shape == (0, 2)
