"""What weights take in a file with learned bits, and its gradient, as compiled, against the oracle."""

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
    from emulated.checks import assert_sizes_equal

COUNTS = [0, 1, 9, 8 * 8200 + 3]

# Compute capability, group size, parametrisation, bits less or more than a width's.
CASES = [
    (90, 0, "bits", 0.0),
    (90, 8, "noise", -1.25),
    (90, 10**6, "bits", 1.5),
    (80, 8, "bits", 0.0),
    (100, 8, "bits", 0.0),
]


@pytest.mark.parametrize(("arch", "group_size", "param", "extra_bits"), CASES)
def test_sizes_and_gradients_equal_the_oracle(arch, group_size, param, extra_bits):
    assert_sizes_equal(COUNTS, group_size, param, extra_bits)


def test_sizes_of_groups_of_one_equal_the_oracle():
    assert_sizes_equal([0, 1, 9001], 1, "noise", 1.5)
