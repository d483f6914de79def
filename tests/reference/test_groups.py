"""Groups: the oracle against diffq 0.2.4, numpy and decoders written apart."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference import groups as oracle
from diffq_fast.reference.sizes import group_count


@pytest.mark.parametrize(
    ("count", "group_size", "groups"),
    [(0, 0, 0), (0, 8, 0), (1, 0, 1), (1, 8, 1), (8, 8, 1), (9, 8, 2), (9, 1, 9), (9, 0, 1), (9, 100, 1)],
)
def test_group_count(count, group_size, groups):
    assert group_count(count, group_size) == groups
    per_group = torch.arange(groups)
    expected = [e // group_size if group_size else 0 for e in range(count)]
    assert oracle.per_element(per_group, count, group_size).tolist() == expected
