"""The tables of docs/runtime.md have the figures that are stored."""

import json

import pytest

from support.paths import ROOT

PAGE = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
HEAD = "| network | run by | file, MB | start, s | memory, MB | batch of 1, ms | 8 | 32 |"
HEAD_WITH_IMPORTS = HEAD.replace("| start, s |", "| imports, s | start, s |")
HEAD_OF_DISTANCES = "| network | file, MB | run by | from float32 | from unpacked |"
HEAD_OF_PRODUCTS = "| weights | run by | one vector | 8 vectors |"
BATCHES = ("1", "8", "32")


def stored(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["results"]


def figure(value: float) -> str:
    return "-" if value < 1e-3 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def rows_below(head):
    lines = PAGE.split(f"{head}\n")[1].splitlines()[1:]
    return [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]


@pytest.mark.parametrize(
    ("head", "machine", "seconds"),
    [
        (HEAD, "2core_avx2", ("start_seconds",)),
        (HEAD_WITH_IMPORTS, "2core_avx512", ("import_seconds", "start_seconds")),
    ],
)
def test_the_tables_of_networks_are_the_stored_ones(head, machine, seconds):
    models = stored(f"packed_models_{machine}")["models"]
    expected = []
    for name, network in models.items():
        for place, way in enumerate(network["alone"]):
            alone, size = network["alone"][way], network["file_bytes"].get(way)
            cells = [name] if not place else []
            cells += [way, figure(size / 2**20) if size else "-"]
            cells += [*(figure(alone[key]) for key in seconds), figure(alone["resident_bytes"] / 2**20)]
            cells += [figure(1e3 * network["latency"][batch][way]["median"]) for batch in BATCHES]
            expected.append(cells)
    assert rows_below(head) == expected
    assert set(models) == {"MiniLM", "CREPE tiny", "Resemblyzer"}


def test_the_memory_at_rest_is_the_stored_one():
    models = stored("packed_memory")["models"].values()

    def listed(values):
        return [f"{value:.2f}" for value in values]

    text = " ".join(PAGE.split("*At most 1.3 times the file in memory, at rest.*")[1].split("\n- *")[0].split())
    over = listed((each["packed_bytes"] + each["plain_bytes"]) / each["file_bytes"] for each in models)
    assert "take {} of the file for MiniLM, {} for CREPE tiny and {} for Resemblyzer".format(*over) in text
    for words, key in (
        ("of these takes {}, {} and {} bits", "coded"),
        ("64, {}, {} and {}.", "64"),
        ("Runs of 16 would take {}, {} and {}", "16"),
    ):
        assert words.format(*listed(each["bits"][key] for each in models)) in text


def test_the_table_of_distances_is_the_stored_one():
    expected = []
    for name, network in stored("packed_memory")["models"].items():
        cells = [name, figure(network["file_bytes"] / 2**20)]
        for way, found in network["distance"].items():
            if way != "float32":
                ends = [f"{found[key]:.2g}" if key in found else "-" for key in ("float32", "unpacked")]
                expected.append([*cells, way, *ends])
                cells = []
    assert rows_below(HEAD_OF_DISTANCES) == expected


def test_what_avx2_is_short_of_is_stored():
    times = {name: case["1 vectors"]["times"] for name, case in stored("packed_linear_2core_avx2")["products"].items()}
    four, two = times["4 bits, groups of 64"], times["2 bits, groups of 64"]
    mixed = times["1 to 8 bits, groups of 64"]["packed, int8"] / four["packed, int8"]
    text = " ".join(PAGE.split("*AVX2, one vector*")[1].split("\n- *")[0].split())
    assert f"4 bits: {four['packed']:.2f} times float32 with exact activations" in text
    assert f"and {four['packed, int8']:.2f} with int8" in text
    assert f"2 bits: {two['packed, int8']:.2f} (" in text
    assert f"with int8 activations, {mixed:.2f} of the speed of 4 bits" in text


def test_what_avx512_is_short_of_is_stored():
    times = {
        name: case["1 vectors"]["times"] for name, case in stored("packed_linear_2core_avx512")["products"].items()
    }
    int8 = {name: ways["packed, int8"] for name, ways in times.items()}
    text = " ".join(PAGE.split("What is short of its aim:")[1].split("*At most 1.3")[0].split())
    assert f"with int8 activations: {int8['2 bits, groups of 64']:.2f} at one vector" in text
    mixed = int8["1 to 8 bits, groups of 64"]
    assert f"widths of 1 to 8 bits have {mixed / int8['4 bits, groups of 64']:.2f} of the speed of 4 bits" in text
    assert f"and {mixed / int8['4 and 5 bits, groups of 64']:.2f} of that of 4 and 5 bits" in text


def test_the_table_of_products_with_avx512_is_the_stored_one():
    expected = []
    for name, case in stored("packed_linear_2core_avx512")["products"].items():
        found = [case[f"{count} vectors"]["times"] for count in (1, 8)]
        for place, library in enumerate(found[0]):
            cells = [name] if not place else []
            expected.append([*cells, library, *(figure(times[library]) for times in found)])
    assert rows_below(HEAD_OF_PRODUCTS) == expected
