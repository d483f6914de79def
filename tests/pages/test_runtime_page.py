"""The tables of docs/runtime.md have the figures that are stored."""

import json

from support.paths import ROOT

PAGE = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
HEAD = "| network | run by | file, MB | imports, s | start, s | memory, MB | batch of 1, ms | 8 | 32 |"
HEAD_OF_DISTANCES = "| network | file, MB | run by | from float32 | from unpacked |"
HEAD_OF_PRODUCTS = (
    "| weights | run by | Zen 4, one vector | 8 vectors | the same, AVX2, one vector | 8 vectors "
    "| Cascade Lake, one vector | 8 vectors |"
)
RUNS = ("2core_zen4", "2core_avx2", "2core_avx512")
BATCHES = ("1", "8", "32")


def stored(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["results"]


def figure(value: float) -> str:
    return "-" if value < 1e-3 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def rows_below(head):
    lines = PAGE.split(f"{head}\n")[1].splitlines()[1:]
    return [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]


def test_the_table_of_networks_is_the_stored_one():
    models = stored("packed_models_2core_avx512")["models"]
    expected = []
    for name, network in models.items():
        for place, way in enumerate(network["alone"]):
            alone, size = network["alone"][way], network["file_bytes"].get(way)
            cells = [name] if not place else []
            cells += [way, figure(size / 2**20) if size else "-"]
            cells += [figure(alone["import_seconds"]), figure(alone["start_seconds"])]
            cells += [figure(alone["resident_bytes"] / 2**20)]
            cells += [figure(1e3 * network["latency"][batch][way]["median"]) for batch in BATCHES]
            expected.append(cells)
    assert rows_below(HEAD) == expected
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


def times_of(run, count=1):
    products = stored(f"packed_linear_{run}")["products"]
    return {name: case[f"{count} vectors"]["times"] for name, case in products.items()}


def test_the_table_of_products_is_the_stored_one():
    expected = []
    runs = [times_of(run, count) for run in RUNS for count in (1, 8)]
    for name, libraries in runs[0].items():
        for place, library in enumerate(libraries):
            cells = [name] if not place else []
            expected.append([*cells, library, *(figure(times[name][library]) for times in runs)])
    assert rows_below(HEAD_OF_PRODUCTS) == expected


def test_what_products_are_short_of_is_stored():
    text = " ".join(PAGE.split("What is short of its aim:")[1].split("*At most 1.3")[0].split())
    zen, avx2, lake = (times_of(run) for run in RUNS)
    four, two, mixed, mean = (
        f"{widths}, groups of 64" for widths in ("4 bits", "2 bits", "1 to 8 bits", "4 and 5 bits")
    )
    int8 = "packed, int8"
    assert f"{zen[two][int8]:.1f} on the Zen 4, {lake[two][int8]:.2f} on the Cascade Lake" in text
    for times in (zen, avx2, lake):
        over_four = times[mixed][int8] / times[four][int8]
        assert f"{over_four:.2f} of the speed of 4 bits" in text
        assert f"{times[mixed][int8] / times[mean][int8]:.2f} of that of 4 and 5 bits" in text
    assert f"{avx2[four]['packed']:.2f} times float32 with exact activations" in text
