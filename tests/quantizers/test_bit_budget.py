"""Choosing whole bits under a size: sizes agree with the quantizer's, and no group more would fit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffq_fast import DiffQuantizer
from diffq_fast.quantizers.base import BITS_PER_MB
from diffq_fast.quantizers.sizes import reachable_widths
from diffq_fast.reference.bits import bits_from_logits, whole_bits
from support.models import Tied


def quantized(group_size=8, seed=0, model=None, **options):
    """A quantizer with random logits on two layers whose counts no group size of the tests divides."""
    torch.manual_seed(seed)
    model = model or nn.Sequential(nn.Linear(13, 21), nn.Linear(21, 7))
    quantizer = DiffQuantizer(model, min_size=0.00005, group_size=group_size, init_bits=6, **options)
    for logit in quantizer.learned_parameters():
        nn.init.normal_(logit, std=1.5)
    return quantizer


def real_bits(quantizer, budget):
    return budget.row([quantizer.extra_bits + quantizer._get_bits(logit) for logit in quantizer.learned_parameters()])


def whole_row(quantizer, budget):
    return budget.row([quantizer.widths_of(entry) for entry in quantizer.selection.originals])


OPTIONS = [
    {},
    {"group_size": 0},
    {"group_size": 1},
    {"extra_bits": -1.5},
    {"extra_bits": 2},
    {"float16": True},
    {"range_scope": "group"},
    {"param": "noise"},
    {"min_bits": 2.7, "max_bits": 9.2},
    {"model": Tied()},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_size_is_that_of_the_quantizer(options):
    quantizer = quantized(**options)
    budget = quantizer.bit_budget()
    exact = float(budget.size(whole_row(quantizer, budget))) / BITS_PER_MB
    assert exact == pytest.approx(quantizer.true_model_size(), rel=1e-6)
    soft = float(budget.size(real_bits(quantizer, budget))) / BITS_PER_MB
    assert soft == pytest.approx(quantizer.model_size().item(), rel=1e-6)
    quantizer.detach()


@pytest.mark.parametrize("group_size", [1, 8, 60])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_fit_fills_the_budget_up_to_less_than_one_group(group_size, share):
    quantizer = quantized(group_size)
    budget = quantizer.bit_budget()
    smallest, largest = (budget.uniform_size(budget.widths[end]) for end in (0, -1))
    wanted = smallest + share * (largest - smallest)
    used = budget.fit(real_bits(quantizer, budget), wanted)
    size = float(budget.size(used))
    assert size <= wanted
    for group in range(len(used)):
        more = used.clone()
        more[group] += 1
        assert more[group] > budget.widths[-1] or float(budget.size(more)) > wanted


def test_fit_at_the_size_of_the_nearest_whole_bits_is_the_nearest_whole_bits():
    quantizer = quantized()
    budget = quantizer.bit_budget()
    nearest = whole_row(quantizer, budget)
    used = budget.fit(real_bits(quantizer, budget), float(budget.size(nearest)))
    assert torch.equal(used, nearest)


def test_fit_raises_first_the_groups_that_lack_most():
    """Three groups of 8 at 3.4, 3.2 and 3.3 bits and room for one bit each in two of them."""
    quantizer = DiffQuantizer(nn.Linear(8, 3, bias=False), min_size=0, group_size=8)
    budget = quantizer.bit_budget()
    bits = torch.tensor([3.4, 3.2, 3.3], dtype=torch.float64)
    table_entry = 2  # 3 and 4 are 1 and 2 above min_bits
    size = budget.fixed + 8 * (3 + 3 + 3) + 3 * table_entry
    assert budget.fit(bits, size + 16).tolist() == [4, 3, 4]
    assert budget.fit(bits, size + 15).tolist() == [4, 3, 3]
    assert budget.fit(bits, size).tolist() == [3, 3, 3]


def test_fit_divides_equal_bits_in_the_order_of_the_groups():
    quantizer = DiffQuantizer(nn.Linear(8, 4, bias=False), min_size=0, group_size=8)
    budget = quantizer.bit_budget()
    size = budget.fixed + 8 * (4 * 4) + 4 * 2
    assert budget.fit(torch.full((4,), 5.0, dtype=torch.float64), size + 16).tolist() == [5, 5, 4, 4]


@pytest.mark.parametrize("end", [0, -1])
def test_fit_at_the_ends_gives_the_same_bits_everywhere(end):
    quantizer = quantized()
    budget = quantizer.bit_budget()
    width = budget.widths[end]
    used = budget.fit(real_bits(quantizer, budget), budget.uniform_size(width))
    assert used.unique().tolist() == [width]


@settings(max_examples=200, deadline=None)
@given(
    low=st.floats(0.1, 14),
    span=st.floats(0.05, 10),
    extra=st.floats(-4, 4),
)
def test_reachable_widths_are_what_rounding_gives(low, span, extra):
    high = min(low + span, 15.0)
    logits = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    found = whole_bits(bits_from_logits(logits, low, high), extra).unique().tolist()
    reachable = reachable_widths(low, high, extra)
    assert set(found) <= set(reachable)
    missed = set(reachable) - set(found)  # only where the interval of such bits is narrower than this grid
    assert all(
        abs(width - extra - bound) == pytest.approx(0.5, abs=0.01)
        for width in missed
        for bound in [min((low, high), key=lambda bound: abs(abs(width - extra - bound) - 0.5))]
    )


def test_a_quantizer_without_weights_costs_its_parameters():
    quantizer = DiffQuantizer(nn.Linear(4, 4))
    budget = quantizer.bit_budget()
    assert budget.uniform_size(2) == 20 * 32
    assert budget.count == 20
    assert len(budget.fit(budget.row([]), 640.0)) == 0
