"""What the long runs make of outcomes: summaries, tables, and that they go on where they were stopped."""

from __future__ import annotations

import importlib.util
import itertools
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
    outcomes.Outcomes("kept.jsonl").add("one", ("sm_90", "noise"), "equal")
    kept = outcomes.Outcomes("kept.jsonl")
    assert kept.get("one", ("sm_90", "noise")) == "equal"
    assert kept.get("two", ("sm_90", "noise")) is None


def test_a_table_takes_the_place_of_the_one_before():
    page = "above\n<!-- table: x -->\n| old |\n<!-- end of table: x -->\nbelow\n"
    once = outcomes.with_table(page, "x", outcomes.table(["a", "b"], [["1", "2"]]))
    assert once == "above\n<!-- table: x -->\n| a | b |\n| --- | --- |\n| 1 | 2 |\n<!-- end of table: x -->\nbelow\n"
    assert outcomes.with_table(once, "x", "") == page.replace("| old |\n", "")


def outcomes_of(tmp_path, monkeypatch, found):
    monkeypatch.setattr(outcomes, "ROOT", tmp_path)
    kept = outcomes.Outcomes("kept.jsonl")
    for key, outcome in found.items():
        kept.add("now", key, outcome)
    return kept


def cell(name):
    return grid_cells.Cell(*name.split(": "), (), cell, ())


NAMES = "noise: uniform", "noise: gaussian", "ranges: g = 7"


@needs_triton
@compiled
def test_the_grid_counts_what_was_run_and_what_is_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "sources_of", lambda cell, engine: "now")
    cells = [cell(name) for name in NAMES]
    found = {("sm_90", "noise: uniform"): "equal", ("sm_90", "noise: gaussian"): "AssertionError: far off"}
    found |= {("sm_80", each.name): "equal" for each in cells}
    stored = grid.summary(cells, outcomes_of(tmp_path, monkeypatch, found))
    assert stored["failed"] == [{"engine": "sm_90", "cell": "noise: gaussian", "outcome": "AssertionError: far off"}]
    today = {name: dict.fromkeys(grid.ENGINES, "now") for name in ("noise", "ranges")}
    rows = [
        line.strip("| ").split(" | ")
        for line in grid.grid_table(json.loads(json.dumps(stored)), today).splitlines()[2:]
    ]
    assert rows == [
        ["noise", "2", "not run", "2", "1 of 2 run"],
        ["ranges", "1", "not run", "1", "not run"],
    ]


@needs_triton
@compiled
def test_what_was_run_of_older_sources_stays_and_is_marked(tmp_path, monkeypatch):
    cells, kept = [cell(name) for name in NAMES], outcomes_of(tmp_path, monkeypatch, {("sm_90", NAMES[1]): "off"})
    monkeypatch.setattr(grid, "sources_of", lambda cell, engine: "now")
    old = json.loads(json.dumps(grid.summary(cells, kept)))
    monkeypatch.setattr(grid, "sources_of", lambda cell, engine: "later")
    new = grid.with_older(grid.summary(cells, kept), old)
    assert new["failed"] == old["failed"] != []
    today = {name: dict.fromkeys(grid.ENGINES, "later") for name in ("noise", "ranges")}
    assert "| noise | 2 | not run | not run | 0 of 1 run (older sources) |" in grid.grid_table(new, today)
    kept.add("later", ("sm_90", NAMES[0]), "equal")
    new = grid.with_older(grid.summary(cells, kept), old)
    assert new["failed"] == []
    assert "| noise | 2 | not run | not run | 1 of 1 run |" in grid.grid_table(new, today)


def test_a_fingerprint_is_of_what_an_operator_uses():
    operator, patterns = outcomes.with_imports, "diffq_fast/backends/triton/{}.py diffq_fast/reference/{}.py"
    files = {
        path.relative_to(ROOT).as_posix()
        for root in patterns.format("planes", "planes").split()
        for path in operator(ROOT / root)
    }
    assert {"diffq_fast/backends/triton/planes_kernels.py", "diffq_fast/backends/triton/levels.py",
            "diffq_fast/reference/groups.py"} <= files  # fmt: skip
    assert not any("noise" in file for file in files)
    reached = "".join(outcomes.code_reached(cell))
    assert "def cell(name)" in reached


@needs_triton
@compiled
def test_a_cell_tells_what_was_wrong():
    def check():
        raise AssertionError("3 of 8 elements\ndiffer")

    assert grid.run_cell("sm_90", check) == "AssertionError: 3 of 8 elements differ"


@needs_triton
@compiled
def test_cells_have_names_of_their_own():
    for every, least in ((False, 300), (True, 500)):
        names = [cell.name for cell in grid_cells.cells(every)]
        assert len(set(names)) == len(names) > least


@needs_triton
@compiled
def test_each_two_options_occur_together_and_every_combination_on_request():
    kinds, params, scopes = set(grid_cells.KINDS), set(grid_cells.PARAMS), {False, True}
    options = [set(grid_cells.GROUP_SIZES), scopes, kinds, params, set(grid_cells.PAIRS)]
    for every, strength in ((False, 2), (True, len(options))):
        found = [(*cell.arguments[:4], cell.arguments[4:]) for cell in grid_cells.training(every)]
        for places in itertools.combinations(range(len(options)), strength):
            together = {tuple(each[place] for place in places) for each in found}
            assert together == set(itertools.product(*(options[place] for place in places)))


@needs_triton
@compiled
@pytest.mark.parametrize(("family", "options"), [("words, of 3", 3), ("levels", 3), ("noisy weights in one", 3)])
def test_each_two_options_of_others_occur_together(family, options):
    few, every = (
        [cell.arguments[:options] for cell in grid_cells.cells(every) if cell.name.startswith(family)]
        for every in (False, True)
    )
    for places in itertools.combinations(range(options), 2):
        one, other = ({tuple(each[place] for place in places) for each in cells} for cells in (few, every))
        assert one == other
    assert len(few) < len(every)


@needs_triton
@compiled
def test_an_engine_that_was_asked_for_has_a_column(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "sources_of", lambda cell, engine: "now")
    kept = outcomes_of(tmp_path, monkeypatch, {("sm_100", NAMES[0]): "equal"})
    today = {name: dict.fromkeys(grid.ENGINES, "now") for name in ("noise", "ranges")}
    made = grid.grid_table(grid.summary([cell(NAMES[0])], kept), today)
    assert made.splitlines()[0].endswith("| sm_90 | sm_100 |")
    assert made.splitlines()[2].endswith("| not run | 1 |")


@needs_triton
@compiled
@pytest.mark.parametrize("name", ["noise: uniform", "ranges: bfloat16, g = 7", "bit planes: 16 rows, 5 bits"])
def test_cells_are_equal(name):
    (cell,) = (cell for cell in grid_cells.cells() if cell.name == name)
    assert grid.run_cell("sm_100", cell.check) == grid.EQUAL


@needs_triton
@compiled
def test_mutants_are_counted_by_verdict():
    known = {("k", "0", "barrier removed", "0", "bar.sync 0;"): "caught: race",
             ("k", "1", "acquire made relaxed", "0", "ld"): "caught: race",
             ("k", "0", "constant off by one", "1", "shr.s32 a, b, 31;"): "equivalent: a sign",
             ("k", "0", "constant off by one", "2", "add.s32 a, b, 1;"): "not caught"}  # fmt: skip
    mutants = [mutation_table.entry(key, outcome) for key, outcome in known.items()]
    assert (mutants[1]["version"], mutants[1]["verdict"], mutants[1]["how"]) == (1, "caught", "race")
    stored = mutation_table.summary(mutants) | {"sources": {"k": "one"}}
    assert stored["ways"] == {"race": 2}
    rows = [
        mutation_table.mutant_table(json.loads(json.dumps(stored)), {"k": now}).splitlines()[2]
        for now in ("one", "two")
    ]
    assert rows[0] == "| k | 1 of 1 | 1 of 1 |  |  | 0 + 1 equivalent of 2 |"
    assert rows[1] == rows[0].replace("| k |", "| k (older sources) |")


@needs_triton
@compiled
def test_the_page_shows_what_is_stored_and_of_which_sources():
    """After an edit: ``python -m emulated.grid --minutes 0`` and the same of ``mutation_table`` mark what is older."""
    made = mutation_table.mutant_table(stored_in("emulated_mutants.json"), mutation_table.sources_by_kernel(None))
    assert outcomes.with_table(PAGE, "mutants", made) == PAGE
    assert (
        outcomes.with_table(PAGE, "grid", grid.grid_table(stored_in("emulated_grid.json"), grid.sources_by_family()))
        == PAGE
    )


def stored_in(name):
    return json.loads((RESULTS / name).read_text())
