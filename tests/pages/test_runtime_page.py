"""The table of whole networks in docs/runtime.md has the figures that are stored."""

import json

from support.paths import ROOT

PAGE = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
STORED = json.loads((ROOT / "benchmarks" / "results" / "packed_models_2core_avx2.json").read_text())["results"]
HEAD = "| network | run by | file, MB | start, s | memory, MB | batch of 1, ms | 8 | 32 |"
BATCHES = ("1", "8", "32")


def figure(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def test_the_table_of_networks_is_the_stored_one():
    lines = PAGE.split(HEAD)[1].splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]
    expected = []
    for name, network in STORED["models"].items():
        for place, way in enumerate(network["alone"]):
            alone, size = network["alone"][way], network["file_bytes"].get(way)
            cells = [name] if not place else []
            cells += [way, figure(size / 2**20) if size else "-"]
            cells += [figure(alone["start_seconds"]), figure(alone["resident_bytes"] / 2**20)]
            cells += [figure(1e3 * network["latency"][batch][way]["median"]) for batch in BATCHES]
            expected.append(cells)
    assert rows == expected
    assert set(STORED["models"]) == {"MiniLM", "CREPE tiny", "Resemblyzer"}
