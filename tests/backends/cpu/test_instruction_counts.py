"""The stored counts of instructions: complete, and compared so that a slower kernel shows."""

from __future__ import annotations

import copy
import importlib.util
import json

import pytest

from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
STORED = sorted((BENCHMARKS / "results").glob("instructions_*.json"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("count_instructions", BENCHMARKS / "count_instructions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=STORED, ids=lambda path: path.stem)
def results(request):
    return json.loads(request.param.read_text())["results"]


def test_a_count_that_moved_by_more_than_the_limit_is_told(script, results):
    assert script.drifts(results, results) == []
    moved = copy.deepcopy(results)
    before = results["per_weight"]["avx2"]["range"]
    moved["per_weight"]["avx2"]["range"] = round(before * 1.06, 3)
    moved["per_weight"]["scalar"]["range"] *= 0.96
    told = script.drifts(results, moved)
    assert len(told) == 1
    assert told[0].startswith(f"avx2, range: {before} instructions per weight are stored")


def test_every_operation_that_is_compared_is_stored_for_every_instruction_set(script, results):
    assert {"scalar", "avx2"} <= set(results["per_weight"])
    for counts in results["per_weight"].values():
        assert set(script.CHECKED.split(",")) <= set(counts)
        assert all(count > 0 for count in counts.values())


def test_the_table_beside_the_counts_shows_them(script, results):
    text = next(path for path in STORED if json.loads(path.read_text())["results"] == results).with_suffix(".md")
    assert text.read_text() == script.table(results)


def test_vector_code_needs_fewer_instructions_than_scalar_code(results):
    for operation, count in results["per_weight"]["avx2"].items():
        assert count < results["per_weight"]["scalar"][operation], operation
