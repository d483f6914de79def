"""The forward in one launch: the order of its tickets, and its results in the interpreter against those of two
launches.

``test_interpreter.py`` starts this file with ``TRITON_INTERPRET=1``. The interpreter runs a launch's programs
one after another: a ticket that had to wait for a later program would wait for ever.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from support.triton_weights import KEY, assert_same, interpreted, make, make_logits, needs_triton, options_of

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton import add_noise as launchers
    from diffq_fast.backends.triton import add_noise_ticketed as ticketed
    from diffq_fast.backends.triton import add_noise_ticketed_kernels as kernels
    from diffq_fast.backends.triton import loading, tables

COUNTS = (20_000, 0, 1, 8200, 9, 8192, 4096)


def assert_forms_equal(weights, group_size, noise_kind="uniform", param="bits", noisy_dtype=None):
    streams = list(range(5, 5 + len(weights)))
    options = options_of(group_size, noise_kind, param)
    arguments = weights, make_logits(weights, group_size), KEY, streams, options, noisy_dtype
    noisy, ranges, extremes = launchers.noisy_weights(*arguments, one_launch=True)
    expected, *measured = launchers.noisy_weights(*arguments)
    assert_same(noisy, expected)
    assert_same([ranges, extremes], measured)


# -- the order of tickets ------------------------------------------------------------------------------------


def names(order):
    return " ".join(f"{'RN'[noise]}{entry}" for entry, noise in order)


def test_large_weights_alternate_with_the_range_one_ahead():
    assert names(ticketed.ticket_order([9, 9, 9, 9], 8)) == "R0 R1 N0 R2 N1 R3 N2 N3"
    assert names(ticketed.ticket_order([9, 9, 9], 1)) == "R0 R1 N0 R2 N1 N2"


def test_small_weights_stay_so_far_ahead_that_no_program_need_wait():
    assert names(ticketed.ticket_order([1, 1, 0, 1, 1, 5], 2)) == "R0 R1 R3 N0 R4 N1 R5 N3 N4 N5"
    assert names(ticketed.ticket_order([0, 0], 2)) == ""


@pytest.mark.parametrize("lag", [1, 3, 500])
def test_a_weights_range_tickets_all_come_before_its_noise(lag):
    tiles = (3, 0, 1, 70, 1, 1, 400, 2)
    *tickets, weights = ticketed.tickets_of(torch.device("cpu"), tiles, lag).tolist()
    assert weights == len(tiles)
    assert len(set(tickets)) == len(tickets) == 2 * sum(tiles)
    place = {ticket: i for i, ticket in enumerate(tickets)}
    for entry, number in enumerate(tiles):
        ranges = [place[(tile << 32) + 2 * entry] for tile in range(number)]
        noises = [place[(tile << 32) + 2 * entry + 1] for tile in range(number)]
        assert not number or max(ranges) < min(noises)


def test_only_groups_and_ranges_that_the_kernel_knows_take_one_launch():
    assert all(ticketed.takes(options_of(group_size)) for group_size in (0, 1, 8, 1024))
    assert not any(ticketed.takes(options_of(group_size)) for group_size in (7, 2048, 4096))
    assert not ticketed.takes(options_of(8, per_group=True))


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
@pytest.mark.parametrize("noise_kind", ["uniform", "gaussian"])
@pytest.mark.parametrize("group_size", [0, 1, 2, 4, 8, 1024])
def test_one_launch_equals_two(group_size, noise_kind):
    assert_forms_equal(make(COUNTS), group_size, noise_kind, "noise" if noise_kind == "gaussian" else "bits")


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
        assert not tables.counters(torch.device("cpu"), kernels.COUNTERS.value + len(COUNTS)).any()


@interpreted
def test_the_switch_chooses_the_form(monkeypatch):
    weights, launches = make((9000, 5)), []
    monkeypatch.setattr(launchers, "noisy_weights", lambda *arguments: launches.append(arguments[5:]))
    for switch, group_size, per_group in ((False, 8, False), (True, 7, False), (True, 8, True), (True, 8, False)):
        monkeypatch.setattr(loading, "ticketed", switch)
        options = options_of(group_size, per_group=per_group).operator_arguments()
        launchers.add_noise(weights, make_logits(weights, group_size), KEY, [0, 1], None, *options, torch.float16)
    assert launches == [(torch.float16, False)] * 3 + [(torch.float16, True)]
