"""Rows that stay packed, on a CUDA device: unpacked bit for bit as on the CPU, and multiplied to rounding."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.reference.packed_rows import pack_rows
from support.gpu_tensors import assert_same, cuda, make, ops
from support.packed_row_forms import FORMS, Rows

pytestmark = pytest.mark.gpu

LARGE = (1024, 4096)  # rows and columns


@pytest.mark.parametrize("name", FORMS)
def test_rows_and_products_equal_the_oracles(name):
    given = Rows(name)
    *tensors, form = given.arguments()
    indices = torch.tensor([given.rows - 1, 0, -1, given.rows])
    (where, *rows) = cuda([indices, *tensors])
    found = ops.unpack_rows(where, *rows, form)
    assert_same([found[:2]], [given.weight[indices[:2]]])
    assert found[2:].isnan().all()
    for number in (0, 1, 3, 8, 9):
        vectors = make((number * form[0],))[0].view(number, form[0])
        expected = default.packed_linear(vectors.double(), *given.arguments())
        largest = vectors.abs().double() @ given.weight.abs().double().T
        found = ops.packed_linear(vectors.cuda(), *rows, form).cpu()
        assert ((found - expected).abs() <= form[0] * 2.0**-24 * largest + 1e-30).all()


@pytest.mark.parametrize("number", [1, 8])
def test_products_of_a_large_layer(number):
    rows, columns = LARGE
    levels = torch.randint(0, 16, (rows, columns), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    widths = torch.full((rows, columns // 64), 4, dtype=torch.uint8)
    scale_and_offset = torch.tensor([2.0]), torch.tensor([-1.0])
    packed = [*pack_rows(levels, widths, 64), *scale_and_offset, [columns, 64, 0, 0, 0]]
    vectors = make((number * columns,))[0].view(number, columns)
    expected = default.packed_linear(vectors.double(), *packed)
    found = ops.packed_linear(vectors.cuda(), *cuda(packed[:5]), packed[5]).cpu()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-2)
