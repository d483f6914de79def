"""What weights take in a file with learned bits, and its gradient, against the oracle."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.reference.sizes import group_count
from support.triton_weights import interpreted, make, needs_triton

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.weight_sizes import weight_sizes, weight_sizes_backward

COUNTS = [0, 1, 7, 8, 9, 35, 8 * 8200 + 3]


def logits_of(group_size, counts):
    return make([group_count(count, group_size) for count in counts], seed=3)


@interpreted
@pytest.mark.parametrize("extra_bits", [0.0, 1.5, -1.25])
@pytest.mark.parametrize("param", ["bits", "noise"])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8, 10**6])
def test_sizes_and_gradients_equal_the_oracle(group_size, param, extra_bits):
    counts = COUNTS if group_size not in (1, 3) else [*COUNTS[:-1], 9001]
    logits, rule = logits_of(group_size, counts), (group_size, 2.0, 15.0, param)
    found = weight_sizes(logits, counts, *rule, extra_bits)
    expected = default.weight_sizes(logits, counts, *rule, extra_bits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
    grads = torch.linspace(0.5, 2, len(counts))
    made = weight_sizes_backward(grads, logits, counts, *rule)
    for one, other in zip(made, default.weight_sizes_backward(grads, logits, counts, *rule), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@interpreted
def test_an_unknown_rule_is_refused():
    rule = (8, 2.0, 15.0, "step")
    with pytest.raises(ValueError, match="param must be one of 'bits', 'noise', got 'step'"):
        weight_sizes([torch.zeros(1)], [8], *rule, 0.0)
    with pytest.raises(ValueError, match="param must be one of"):
        weight_sizes_backward(torch.ones(1), [torch.zeros(1)], [8], *rule)


@interpreted
def test_tables_at_powers_of_two():
    """1, 2, 3, 4, 5, 8 and 9 widths take 0, 1, 2, 2, 3, 3 and 4 bits each: bits are 1 and the logit's."""
    for widths, entry in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4)):
        bits = torch.tensor([1.001, widths + 0.001])
        logits = [torch.logit((bits - 1) / 15)]
        size = weight_sizes(logits, [16], 8, 1.0, 16.0, "bits", 0.0)
        torch.testing.assert_close(size, 8 * bits.sum().view(1) + 2 * entry, rtol=1e-4, atol=0)


@interpreted
def test_a_logit_that_is_nan_makes_its_weight_nan():
    logits = [torch.zeros(9000), torch.zeros(2)]
    logits[0][8500] = float("nan")
    assert weight_sizes(logits, [72000, 16], 8, 2.0, 15.0, "bits", 0.0).isnan().tolist() == [True, False]


def test_float64_is_left_to_the_oracle():
    logits = [torch.zeros(2).double()]
    assert torch.equal(
        weight_sizes(logits, [16], 8, 2.0, 15.0, "bits", 0.0),
        default.weight_sizes(logits, [16], 8, 2.0, 15.0, "bits", 0.0),
    )
