"""The forward in one launch: the order of its tickets, and its results in the interpreter against those of two
launches.

``test_triton_interpreter.py`` starts this file with ``TRITON_INTERPRET=1``. The interpreter runs a launch's programs
one after another: a ticket that had to wait for a later program would wait for ever.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from diffq_fast.reference.sizes import group_count

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in test_triton_interpreter.py's subprocess"
)
if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton import forward, loading, tables, ticketed

KEY = torch.tensor(-0x123456789ABCDEF)
COUNTS = (20_000, 0, 1, 8200, 9, 8192, 4096)


def make(counts, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).to(dtype) for count in counts]


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def assert_forms_equal(weights, group_size, kind="uniform", param="bits", noisy_dtype=None):
    logits = make([group_count(weight.numel(), group_size) for weight in weights], seed=1)
    streams = list(range(5, 5 + len(weights)))
    arguments = noisy_dtype, weights, logits, KEY, streams, group_size, 2.0, 15.0, param, kind
    noisy, found, extremes = ticketed.add_noise_as(*arguments)
    expected, bounds, places = forward.add_noise_as(*arguments, False)
    assert_same(noisy, expected)
    assert_same([found, extremes], [bounds, places])


# -- the order of tickets ------------------------------------------------------------------------------------


def names(order):
    return " ".join(f"{'RN'[noise]}{row}" for row, noise in order)


def test_large_weights_alternate_with_the_range_one_ahead():
    assert names(ticketed.ticket_order([9, 9, 9, 9], 8)) == "R0 R1 N0 R2 N1 R3 N2 N3"
    assert names(ticketed.ticket_order([9, 9, 9], 1)) == "R0 R1 N0 R2 N1 N2"


def test_small_weights_stay_so_far_ahead_that_no_program_need_wait():
    assert names(ticketed.ticket_order([1, 1, 0, 1, 1, 5], 2)) == "R0 R1 R3 N0 R4 N1 R5 N3 N4 N5"
    assert names(ticketed.ticket_order([0, 0], 2)) == ""


@pytest.mark.parametrize("lag", [1, 3, 500])
def test_a_weights_range_tickets_all_come_before_its_noise(lag):
    tiles = (3, 0, 1, 70, 1, 1, 400, 2)
    tickets = ticketed.tickets_of(torch.device("cpu"), tiles, lag).tolist()
    assert len(set(tickets)) == len(tickets) == 2 * sum(tiles)
    place = {ticket: i for i, ticket in enumerate(tickets)}
    for row, number in enumerate(tiles):
        ranges = [place[(tile << 32) + 2 * row] for tile in range(number)]
        noises = [place[(tile << 32) + 2 * row + 1] for tile in range(number)]
        assert not number or max(ranges) < min(noises)


def test_only_groups_and_ranges_that_the_kernel_knows_take_one_launch():
    assert all(ticketed.takes(group_size, False) for group_size in (0, 1, 8, 1024))
    assert not any(ticketed.takes(group_size, False) for group_size in (7, 2048, 4096))
    assert not ticketed.takes(8, True)


def test_the_status_tells_of_the_switch():
    program = "from diffq_fast import backend_info; print(backend_info()['backends']['triton']['reason'])"
    told = []
    for value in ("0", "1"):
        environment = os.environ | {"DIFFQ_FAST_TICKETED": value}
        command = [sys.executable, "-W", "ignore", "-c", program]
        told.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert "DIFFQ_FAST_TICKETED" not in told[0]
    assert "DIFFQ_FAST_TICKETED is set: range and noise share one launch" in told[1]


# -- the kernel ----------------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
@pytest.mark.parametrize("group_size", [0, 1, 2, 4, 8, 1024])
def test_one_launch_equals_two(group_size, kind):
    assert_forms_equal(make(COUNTS), group_size, kind, "noise" if kind == "gaussian" else "bits")


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_launch_equals_two_in_each_dtype(dtype):
    assert_forms_equal(make(COUNTS, dtype), 8)
    assert_forms_equal(make(COUNTS), 8, noisy_dtype=dtype)
    assert_forms_equal([*make((9000,), dtype), *make((9000, 5))], 8)


@interpreted
def test_one_launch_equals_two_for_unaligned_views_ties_nan_and_infinities():
    nan, inf = float("nan"), float("inf")
    weights = [make((8193,))[0][1:], make((20_000,))[0].clamp(-1, 1), torch.full((9000,), inf), torch.ones(5000)]
    weights += [torch.cat([make((9000,))[0], torch.tensor([nan])]), torch.tensor([0.0, -0.0]), torch.tensor([-inf])]
    assert_forms_equal(weights, 8)


@interpreted
def test_counters_are_zero_after_a_launch_whatever_the_number_of_programs(monkeypatch):
    for programs in (1, 2, 7):
        monkeypatch.setattr(ticketed, "_resident_programs", lambda device, programs=programs: programs)
        assert_forms_equal(make(COUNTS), 8)
        assert not tables.counters(torch.device("cpu"), ticketed.COUNTERS + len(COUNTS)).any()


@interpreted
def test_the_switch_chooses_the_form(monkeypatch):
    weights, launches = make((9000, 5)), []
    monkeypatch.setattr(ticketed, "add_noise_as", lambda dtype, *rest: launches.append((dtype, len(rest))))
    for switch, group_size, per_group in ((False, 8, False), (True, 7, False), (True, 8, True), (True, 8, False)):
        monkeypatch.setattr(loading, "ticketed", switch)
        logits = make([group_count(w.numel(), group_size) for w in weights], seed=1)
        options = group_size, 2.0, 15.0, "bits", "uniform", per_group
        forward.add_noise(weights, logits, KEY, [0, 1], None, *options, torch.float16)
    assert launches == [(torch.float16, 9)]
