"""Widths that the core finds by thresholds are torch's own, at every float beside a threshold too."""

import math

import pytest
import torch

from diffq_fast import functional
from diffq_fast.backends import cpu
from diffq_fast.reference.bits import LOGITS_IN_CACHE, bits_from_logits, whole_bits, whole_bits_from_logits

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason="needs the compiled core")

RULES = [(2, 15, 0), (1, 15, 0), (0.01, 16, 0), (2, 15, 0.5), (2.5, 14.5, 0), (3, 7, -4), (7, 7.25, 0.3), (2, 15, 12)]
each_rule = pytest.mark.parametrize("param", ["bits", "noise"])


def rules(function):
    return each_rule(pytest.mark.parametrize(("min_bits", "max_bits", "extra_bits"), RULES)(function))


def steps_of(*arguments):
    from diffq_fast.backends.cpu import widths

    return widths._thresholds(*arguments)


def neighbours(value, count):
    """``count`` floats on either side of one."""
    order = torch.tensor(value, dtype=torch.float32).view(torch.int32) + torch.arange(-count, count + 1)
    return order.to(torch.int32).view(torch.float32)


def same_as_torch(logits, min_bits, max_bits, param, extra_bits):
    found = functional.widths_from_logits(logits, min_bits, max_bits, param, extra_bits)
    return torch.equal(found, whole_bits_from_logits(logits, min_bits, max_bits, param, extra_bits))


@rules
def test_widths_are_torchs_at_every_float_in_the_bands_and_beside_them(min_bits, max_bits, param, extra_bits):
    steps = steps_of(float(min_bits), float(max_bits), param, float(extra_bits))
    edges = [edge for edge in (*steps.below, *steps.reached) if math.isfinite(edge)]
    for edge in edges:
        assert same_as_torch(neighbours(edge, 3000), min_bits, max_bits, param, extra_bits)
    for low, high in zip(steps.below, steps.reached, strict=True):
        if math.isfinite(low) and math.isfinite(high):
            first, last = (int(torch.tensor(each).view(torch.int32)) for each in (low, high))
            inside = torch.linspace(low, high, 50_001)
            if low > 0 and last - first < 200_000:  # all of them
                inside = torch.arange(first, last + 1, dtype=torch.int32).view(torch.float32)
            assert same_as_torch(inside, min_bits, max_bits, param, extra_bits)


@rules
def test_widths_are_torchs_for_logits_of_every_magnitude(min_bits, max_bits, param, extra_bits):
    generator = torch.Generator().manual_seed(3)
    spread = torch.tensor([1e-30, 1e-3, 0.5, 3.0, 30.0, 1e30]).repeat_interleave(60_000)
    logits = torch.randn(len(spread), generator=generator) * spread
    assert same_as_torch(logits, min_bits, max_bits, param, extra_bits)
    logits[::777] = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-45, 88.0, -104.0]).repeat(60)[:464]
    assert same_as_torch(logits, min_bits, max_bits, param, extra_bits)


@rules
def test_bits_in_float32_stay_well_inside_of_the_band(min_bits, max_bits, param, extra_bits):
    """Outside of the bands nothing is asked of torch, so no float32 evaluation, vector or not, may leave them."""
    from diffq_fast.backends.cpu import widths

    generator = torch.Generator().manual_seed(4)
    logits = torch.cat([3 * torch.randn(300_001, generator=generator), torch.linspace(-20, 20, 300_001)])
    exact = extra_bits + bits_from_logits(logits.double(), min_bits, max_bits, param)
    strided = torch.stack([logits, logits], dim=1)[:, 0]
    for each in (logits, strided):
        error = (extra_bits + bits_from_logits(each, min_bits, max_bits, param)).double() - exact
        assert error.abs().max() < widths._LARGEST_ERROR / 2


@pytest.mark.parametrize("count", [4095, 4096, 4097, 70_001, LOGITS_IN_CACHE + 33, 3 * LOGITS_IN_CACHE])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_counts_and_threads_change_no_width(count, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        band = steps_of(2.0, 15.0, "bits", 0.0)
        middle = (band.below[3] + band.reached[3]) / 2
        logits = torch.randn(count, generator=torch.Generator().manual_seed(count))
        for period in (1, 17, 5000):  # all in doubt, every window, a few
            logits[::period] = neighbours(middle, 40).repeat(count)[: len(logits[::period])]
            assert same_as_torch(logits, 2, 15, "bits", 0)
    finally:
        torch.set_num_threads(before)


def test_logits_out_of_doubt_do_not_go_through_torch(monkeypatch):
    """The way that is meant to be fast is taken; and where logits are in doubt, theirs alone."""
    from diffq_fast.backends.cpu import widths

    asked = []

    def recorded(logits, *rule):
        asked.append(len(logits))
        return bits_from_logits(logits, *rule)

    steps = steps_of(2.0, 15.0, "bits", 0.0)
    monkeypatch.setattr(widths, "bits_from_logits", recorded)
    logits = torch.full((40_960,), 0.1)
    assert functional.widths_from_logits(logits, 2, 15).unique().tolist() == [9]
    assert asked == []
    logits[[70, 130, 40_959]] = (steps.below[5] + steps.reached[5]) / 2
    functional.widths_from_logits(logits, 2, 15)
    assert asked == [3 * 64]


def test_arguments_out_of_the_usual_go_through_torch():
    logits = torch.linspace(-9, 9, 5000)
    for rule in ((2, 30, "bits", 0), (1e-9, 15, "noise", 0), (2, 15, "bits", 1e9), (2, 15, "bits", math.nan)):
        assert same_as_torch(logits, *rule)
    expected = whole_bits(bits_from_logits(logits, 2, 15))
    assert torch.equal(functional.widths_from_logits(logits.requires_grad_(), 2, 15), expected)
