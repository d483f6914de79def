"""What the long runs make of outcomes: summaries, tables, and that they go on where they were stopped."""

from __future__ import annotations

import importlib.util
import json

import pytest

from emulated import outcomes
from support.paths import ROOT
from support.triton_weights import INTERPRETED, needs_triton

RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "gpu_emulator.md").read_text()
compiled = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")

if importlib.util.find_spec("triton") and not INTERPRETED:
    from emulated import grid, grid_cells, mutation_table


def test_outcomes_are_kept_for_the_same_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "ROOT", tmp_path)
    outcomes.Outcomes("kept.jsonl", "one").add(("sm_90", "noise"), "equal")
    assert outcomes.Outcomes("kept.jsonl", "one").known == {("sm_90", "noise"): "equal"}
    assert outcomes.Outcomes("kept.jsonl", "two").known == {}


def test_a_table_takes_the_place_of_the_one_before():
    page = "above\n<!-- table: x -->\n| old |\n<!-- end of table: x -->\nbelow\n"
    once = outcomes.with_table(page, "x", outcomes.table(["a", "b"], [["1", "2"]]))
    assert once == "above\n<!-- table: x -->\n| a | b |\n| --- | --- |\n| 1 | 2 |\n<!-- end of table: x -->\nbelow\n"
    assert outcomes.with_table(once, "x", "") == page.replace("| old |\n", "")


@needs_triton
@compiled
def test_the_grid_counts_what_was_run_and_what_is_equal():
    cells = [("noise", "noise: uniform"), ("noise", "noise: gaussian"), ("ranges", "ranges: g = 7")]
    found = {("sm_90", "noise: uniform"): "equal", ("sm_90", "noise: gaussian"): "AssertionError: far off"}
    found |= {("sm_80", name): "equal" for _, name in cells}
    stored = grid.summary(cells, found)
    assert stored["failed"] == [{"engine": "sm_90", "cell": "noise: gaussian", "outcome": "AssertionError: far off"}]
    rows = [line.strip("| ").split(" | ") for line in grid.grid_table(json.loads(json.dumps(stored))).splitlines()[2:]]
    assert rows == [
        ["noise", "2", "not run", "2", "1 of 2 run", "not run"],
        ["ranges", "1", "not run", "1", "not run", "not run"],
    ]


@needs_triton
@compiled
def test_a_cell_tells_what_was_wrong():
    def check():
        raise AssertionError("3 of 8 elements\ndiffer")

    assert grid.run_cell("sm_90", check) == "AssertionError: 3 of 8 elements differ"


@needs_triton
@compiled
def test_cells_have_names_of_their_own():
    names = [cell.name for cell in grid_cells.cells()]
    assert len(set(names)) == len(names) > 500


@needs_triton
@compiled
@pytest.mark.parametrize("name", ["noise: uniform", "ranges: bfloat16, g = 7", "bit planes: 16 rows, 5 bits"])
def test_cells_are_equal(name):
    (cell,) = (cell for cell in grid_cells.cells() if cell.name == name)
    assert grid.run_cell("sm_100", cell.check) == grid.EQUAL


@needs_triton
@compiled
def test_mutants_are_counted_by_verdict():
    known = {("k", "barrier removed", "0", "bar.sync 0;"): "caught: race",
             ("k", "acquire made relaxed", "0", "ld"): "caught: race",
             ("k", "constant off by one", "1", "shr.s32 a, b, 31;"): "equivalent: a sign",
             ("k", "constant off by one", "2", "add.s32 a, b, 1;"): "not caught"}  # fmt: skip
    stored = mutation_table.summary(known)
    assert stored["ways"] == {"race": 2}
    assert [(each["place"], each["verdict"], each["why"]) for each in stored["others"]] == [
        (1, "equivalent", "a sign"), (2, "not caught", "")]  # fmt: skip
    (row,) = mutation_table.mutant_table(json.loads(json.dumps(stored))).splitlines()[2:]
    assert row == "| k | 1 of 1 | 1 of 1 |  |  | 0 + 1 equivalent of 2 |"


@needs_triton
@compiled
@pytest.mark.parametrize(("name", "file"), [("grid", "emulated_grid.json"), ("mutants", "emulated_mutants.json")])
def test_the_page_shows_what_is_stored(name, file):
    made = {"grid": grid.grid_table, "mutants": mutation_table.mutant_table}[name]
    assert outcomes.with_table(PAGE, name, made(json.loads((RESULTS / file).read_text()))) == PAGE
