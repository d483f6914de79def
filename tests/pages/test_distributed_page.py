"""The table of docs/distributed.md has the memory that is stored."""

import json

from support.paths import ROOT

PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
ROWS = json.loads((ROOT / "benchmarks" / "results" / "sharded_memory.json").read_text())["results"]["rows"]
HEAD = (
    "| processes | tensors, plain | with quantizer | resident, plain | with quantizer | peak, plain | with quantizer |"
)
FIGURES = ("counted_bytes", "resident_bytes", "peak_bytes")


def test_the_table_of_memory_is_the_stored_one():
    expected = [
        [world, *(f"{ROWS[setting][world][key] / 2**20:.0f}" for key in FIGURES for setting in ROWS)]
        for world in ROWS["plain"]
    ]
    lines = PAGE.split(f"{HEAD}\n")[1].splitlines()[1:]
    assert [line.strip("| ").split(" | ") for line in lines[: lines.index("")]] == expected


def test_what_a_process_keeps_falls_as_one_over_their_number():
    for setting in ROWS.values():
        assert setting["1"]["counted_bytes"] < 1.001 * 2 * setting["2"]["counted_bytes"]
        assert setting["1"]["counted_bytes"] < 1.001 * 4 * setting["4"]["counted_bytes"]
    more = {
        world: ROWS["quantised"][world]["resident_bytes"] - ROWS["plain"][world]["resident_bytes"] for world in "124"
    }
    assert more["1"] > more["2"] > more["4"]
