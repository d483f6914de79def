"""Values packed into bit planes: the oracle against diffq 0.2.4, numpy and decoders written apart."""

from __future__ import annotations

import math

import pytest
import torch

from diffq_fast.reference import planes as oracle

PACKED_COUNTS = (1, 63, 2048, 5000)


@pytest.mark.parametrize("count", PACKED_COUNTS)
@pytest.mark.parametrize("width", range(1, 16))
def test_planes_equal_what_diffq_packed(golden, width, count):
    packers = golden("packers")
    levels = packers[f"levels.{width}.{count}"]
    blocks = packers[f"bitpack.{width}.{count}"]
    assert torch.equal(oracle.pack_planes(levels, width, 64, 32), blocks)
    assert oracle.worst_value(levels) == max(levels.tolist(), default=0)
    assert torch.equal(oracle.unpack_planes(blocks, count), levels)
    rectangle = packers[f"torch_pack.{width}.{count}"]
    columns = math.ceil(count / 16)
    assert torch.equal(oracle.pack_planes(levels, width, 16, columns), rectangle[None])
    assert torch.equal(oracle.unpack_planes(rectangle[None], count), levels)


@pytest.mark.parametrize("rows", sorted(oracle.PLANE_DTYPES))
@pytest.mark.parametrize("count", [0, 1, 65, 200])
def test_planes_put_bit_j_of_a_value_into_bit_r_of_word_j(rows, count):
    columns, nbits = 3, 15
    torch.manual_seed(rows)
    values = torch.randint(0, 2**nbits, (count,))
    planes = oracle.pack_planes(values, nbits, rows, columns)
    assert planes.dtype == oracle.PLANE_DTYPES[rows]
    assert planes.shape == (math.ceil(count / (rows * columns)), nbits, columns)
    words = {(k, j, c): 0 for k in range(len(planes)) for j in range(nbits) for c in range(columns)}
    for place, value in enumerate(values.tolist()):
        block, rest = divmod(place, rows * columns)
        row, column = divmod(rest, columns)
        for bit in range(nbits):
            words[block, bit, column] |= (value >> bit & 1) << row
    found = {at: planes[at].item() % 2**rows for at in words}
    assert found == words
    unpacked = oracle.unpack_planes(planes, count)
    assert unpacked.dtype == torch.int16
    assert unpacked.tolist() == values.tolist()


def test_no_planes_unpack_to_zeros():
    planes = oracle.pack_planes(torch.zeros(5, dtype=torch.int64), 0, 64, 32)
    assert planes.shape == (1, 0, 32)
    assert oracle.unpack_planes(planes, 5).tolist() == [0] * 5
