"""The forward in one launch as compiled: whatever the order in which its programs go on, it ends, no two of them race,
and its results equal those of two launches."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from support.triton_weights import INTERPRETED, make, needs_triton

pytestmark = [
    needs_triton,
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled"),
    pytest.mark.usefixtures("emulator"),
]

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton import add_noise_ticketed as ticketed
    from emulated.checks import assert_one_launch_equals_two

COUNTS = (8200, 0, 1, 9)
FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
# Compute capability, group size, noise, dtypes of weights and of noisy weights.
FORMS = [
    (90, 8, "uniform", FLOAT, None),
    (90, 0, "gaussian", FLOAT, BF16),
    (90, 1, "uniform", HALF, None),
    (90, 1024, "gaussian", FLOAT, None),
    (80, 8, "gaussian", FLOAT, None),
    (100, 8, "uniform", FLOAT, BF16),
]


def assert_forms_equal(emulator, weights, group_size, noise_kind, noisy=None, schedule=None):
    def under_the_schedule():
        emulator.settings.schedule, emulator.settings.most_steps = schedule, 100_000

    emulator.settings.schedule = None
    assert_one_launch_equals_two(weights, group_size, noise_kind, noisy, under_the_schedule)


@pytest.mark.parametrize(("arch", "group_size", "noise_kind", "dtype", "noisy"), FORMS)
def test_one_launch_equals_two(emulator, arch, group_size, noise_kind, dtype, noisy):
    assert_forms_equal(emulator, make(COUNTS, dtype), group_size, noise_kind, noisy)


@pytest.mark.parametrize("counts", [(300, 100), (300, 9, 100)])
def test_without_a_schedule_nobody_waits_for_ever(emulator, counts):
    for _ in range(2):
        assert_forms_equal(emulator, make(counts), 8, "uniform")


@pytest.mark.parametrize("programs", [1, 3, 7])
@pytest.mark.parametrize("order", ["random", "starving", "greedy"])
def test_one_launch_ends_and_equals_two_in_any_order(emulator, monkeypatch, order, programs):
    from ptx.schedules import SCHEDULES

    monkeypatch.setattr(ticketed, "_resident_programs", lambda device: programs)
    emulator.settings.unit = "warp" if programs == 3 else "block"
    weights = [make((521,))[0][1:], *make((8200, 9))]
    assert_forms_equal(emulator, weights, 8, "uniform", schedule=SCHEDULES[order](programs))
