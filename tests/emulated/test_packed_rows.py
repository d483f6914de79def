"""Rows that stay packed, as compiled, against the oracle."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from support.packed_row_forms import Rows
from support.triton_weights import INTERPRETED, assert_same, make, needs_triton

pytestmark = [
    needs_triton,
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled"),
    pytest.mark.usefixtures("emulator"),
]

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.packed_rows import packed_linear, unpack_rows

# Compute capability, form, vectors that are multiplied.
CASES = [
    (90, "one width and scale", 1),
    (90, "groups of 8", 3),
    (90, "groups of 64 with a scale each", 8),
    (90, "rows that begin within an eight", 1),
    (90, "a number of levels", 8),
    (90, "a row within its second sixteen", 1),
    (80, "groups of 8 with a scale each", 1),
    (80, "groups cut by rows", 2),
]


@pytest.mark.parametrize(("arch", "name", "number"), CASES)
def test_rows_and_products_equal_the_oracles(arch, name, number):
    given = Rows(name)
    indices = torch.tensor([given.rows - 1, 0, -1, given.rows])
    found = unpack_rows(indices, *given.arguments())
    assert_same([found[:2]], [given.weight[indices[:2]]])
    assert found[2:].isnan().all()
    (flat,) = make((number * given.form.columns,))
    vectors = flat.view(number, given.form.columns)
    expected = default.packed_linear(vectors.double(), *given.arguments())
    largest = vectors.abs().double() @ given.weight.abs().double().T
    found = packed_linear(vectors, *given.arguments())
    assert ((found - expected).abs() <= given.form.columns * 2.0**-24 * largest + 1e-30).all()
