"""Plans: built once, kept up to a limit, and for good where a CUDA graph has recorded them."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from support.triton_weights import make, needs_triton

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton import arguments, tables


def plan(count, streams=(3, 4)):
    weights = make((count, 9))
    return tables.plan_of(weights, streams, (0, 2), (0, 5), (-(-count // 8192), 1))


def test_a_plan_says_of_each_weight_what_kernels_read_by_name():
    entries = plan(20_000).entries
    expected = {
        "ELEMENTS": [20_000, 9], "PROGRAM_BEGIN": [0, 3], "OUTPUT_BEGIN": [0, 20_032], "GROUP_BEGIN": [0, 5],
        "STREAM": [3, 4], "PLACE": [0, 2], "PROGRAMS": [3, 1], "PARTS": [3, 1],
    }  # fmt: skip
    assert entries.shape == (2, len(expected))
    for name, column in expected.items():
        assert entries[:, getattr(arguments, name).value].tolist() == column


def test_a_plan_says_which_weight_and_part_each_program_works_on():
    made = plan(20_000)
    assert made.owners.tolist() == [0, 0, 0, 1]
    assert made.part_owners.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]


def test_a_plan_without_programs_is_empty():
    made = tables.plan_of(make((0,)), (0,), (0,), (0,), (0,))
    assert (made.owners.numel(), made.part_owners.shape, made.buffer_size) == (0, (0, 2), 0)


def test_a_plan_is_built_once():
    assert plan(100) is plan(100)
    assert plan(100) is not plan(100, streams=(3, 5))


def test_plans_are_kept_up_to_their_limit(monkeypatch):
    assert tables._cached_plan.cache_info().maxsize == tables.MAX_PLANS == 4096
    monkeypatch.setattr(tables, "_cached_plan", tables.lru_cache(maxsize=2)(tables._device_plan))
    kept = plan(10)
    for count in (11, 12):
        plan(count)
    assert plan(10) is not kept
    assert tables._cached_plan.cache_info().currsize == 2


@pytest.mark.parametrize("recording", [False, True])
def test_only_a_plan_that_a_graph_records_is_kept_for_good(monkeypatch, recording):
    monkeypatch.setattr(tables, "_recorded", set())
    monkeypatch.setattr(tables, "capturing", lambda device: recording)
    made = plan(17)
    assert (made in tables._recorded) is recording


def test_tables_are_made_whatever_the_default_dtype():
    tables._cached_plan.cache_clear()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        made = plan(33)
    finally:
        torch.set_default_dtype(before)
    assert made.entries.dtype == torch.int64
    assert {template.dtype for template in made.templates} == {torch.float32}
