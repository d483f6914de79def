"""Rows that stay packed, as compiled, against the oracle."""

from __future__ import annotations

import importlib.util

import pytest

from support.triton_weights import INTERPRETED, needs_triton

pytestmark = [
    needs_triton,
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled"),
    pytest.mark.usefixtures("emulator"),
]

if importlib.util.find_spec("triton"):
    from emulated.checks import assert_rows_equal

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
    (100, "groups of 8", 1),
    (100, "a number of levels", 3),
    (100, "groups cut by rows", 8),
]


@pytest.mark.parametrize(("arch", "name", "number"), CASES)
def test_rows_and_products_equal_the_oracles(arch, name, number):
    assert_rows_equal(name, [number])
