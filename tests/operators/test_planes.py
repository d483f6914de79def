"""Values packed into bit planes: the operators against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference import planes as planes_oracle
from support.operators import check, ops, weights_of, widths_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("index", range(6))
def test_opcheck_quantize_planes(index):
    weight = weights_of()[index]
    (widths,) = widths_of([weight], 4)
    found, _ = ops.weight_range([weight], 4, False)
    members = widths.repeat_interleave(4)[: weight.numel()]
    counts = [int((members == width).sum()) for width in range(1, 17)]
    check(ops.quantize_planes.default, weight, widths, found, 4, counts)


@pytest.mark.parametrize("rows", sorted(planes_oracle.PLANE_DTYPES))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_planes_equal_the_oracle(dtype, rows):
    for nbits, count in [(0, 5), (1, 1), (7, 1000), (7, 64 * 9)]:
        values = (torch.arange(count) * 37 % 2**nbits).to(dtype)
        planes = ops.pack_planes(values, nbits, rows, 9)
        assert torch.equal(planes, planes_oracle.pack_planes(values, nbits, rows, 9))
        if nbits:
            again, seen = ops.pack_planes_seen(values, nbits, rows, 9)
            assert torch.equal(again, planes)
            assert 0 <= seen < 2**nbits
        assert ops.unpack_planes(planes, count).tolist() == values.tolist()
