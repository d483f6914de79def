"""Rows that stay packed: unpacked as the oracle has them bit for bit, and multiplied to rounding."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from support.packed_row_forms import FORMS, Rows
from support.triton_weights import assert_near, assert_same, interpreted, make, needs_triton

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton import packed_rows
    from diffq_fast.backends.triton.packed_rows import packed_linear, unpack_rows

# More than one tile of a row, in one segment and in several; for the names see FORMS.
LONG = {"a long segment": (2, 2600, 0, 0, False, 0), "many segments": (3, 2304, 8, 8, True, 0)}


@pytest.fixture(autouse=True)
def _long_forms(monkeypatch):
    for name, form in LONG.items():
        monkeypatch.setitem(FORMS, name, form)


@interpreted
@pytest.mark.parametrize("name", [*FORMS, *LONG])
def test_rows_equal_the_oracles(name):
    given = Rows(name)
    indices = torch.tensor([given.rows - 1, 0, 1, 1])
    assert_same([unpack_rows(indices, *given.arguments())], [given.weight[indices]])
    assert unpack_rows(indices[:0], *given.arguments()).shape == (0, given.form.columns)


@interpreted
@pytest.mark.parametrize("count", [0, 1, 3, 8, 9])
@pytest.mark.parametrize("name", [*FORMS, *LONG])
def test_products_equal_those_of_the_weight_to_rounding(name, count):
    given = Rows(name, most_width=8)
    (flat,) = make((count * given.form.columns,))
    vectors = flat.view(count, given.form.columns)
    for int8 in (False, True):
        expected = default.packed_linear(vectors.double(), *given.arguments(), int8)
        largest = vectors.abs().double() @ given.weight.abs().double().T
        found = packed_linear(vectors, *given.arguments(), int8)
        assert found.shape == (count, given.rows)
        # a sum of n float32 products is within n * 2**-24 of their absolute values' sum
        assert ((found - expected).abs() <= given.form.columns * 2.0**-24 * largest + 1e-30).all()


@interpreted
def test_a_product_has_the_dtype_and_the_shape_of_its_input():
    given = Rows("groups of 8", most_width=4)
    (flat,) = make((6 * 64,))
    vectors = flat.view(2, 3, 64)
    found = packed_linear(vectors.bfloat16(), *given.arguments())
    assert_near([found], [default.packed_linear(vectors.bfloat16(), *given.arguments())], 2**-7, 2**-7)


@interpreted
@pytest.mark.parametrize("index", [-1, 5, 2**40])
def test_a_row_that_does_not_exist_is_nan(index):
    given = Rows("groups of 8")
    found = unpack_rows(torch.tensor([1, index]), *given.arguments())
    assert_same([found[0]], [given.weight[1]])
    assert found[1].isnan().all()


@interpreted
@pytest.mark.parametrize("start", [-1, 2**31 - 1, 10_000])
def test_a_row_outside_of_the_data_is_nan_and_nothing_else_is(start):
    given = Rows("groups of 8")
    data, starts, *rest = given.arguments()
    starts = starts.clone()
    starts[2] = start
    found = unpack_rows(torch.arange(5), data, starts, *rest)
    others = torch.tensor([0, 1, 3, 4])
    assert_same([found[others]], [given.weight[others]])
    assert found[2].isnan().all()
    products = packed_linear(torch.ones(64), data, starts, *rest)
    assert products.isnan().tolist() == [False, False, True, False, False]


@interpreted
def test_data_that_begins_between_words_is_read_right():
    given = Rows("groups of 8")
    data, *rest = given.arguments()
    shifted = torch.empty(len(data) + 1, dtype=torch.uint8)[1:].copy_(data)
    assert_same([unpack_rows(torch.arange(5), shifted, *rest)], [given.weight])


@interpreted
def test_a_row_too_long_to_count_its_bits_goes_to_the_default(monkeypatch):
    monkeypatch.setattr(packed_rows, "MOST_COLUMNS", 63)
    given = Rows("groups of 8")
    assert_same([unpack_rows(torch.arange(5), *given.arguments())], [given.weight])
    expected = default.packed_linear(torch.ones(64), *given.arguments())
    assert_same([packed_linear(torch.ones(64), *given.arguments())], [expected])
