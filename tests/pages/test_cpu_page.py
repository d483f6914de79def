"""The figures of ``docs/cpu.md`` and of the README are those that are stored."""

from __future__ import annotations

import importlib.util
import json

from support.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "cpu.md").read_text()
README = (ROOT / "README.md").read_text()
STORED = json.loads((RESULTS / "cpu_2core_avx512.json").read_text())


def report():
    spec = importlib.util.spec_from_file_location("report_cpu", ROOT / "benchmarks" / "report_cpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_targets_is_made_from_what_is_stored():
    targets, everything = report().table(STORED).split("\n\n")
    assert targets in PAGE
    assert (RESULTS / "cpu_2core_avx512.md").read_text() == f"{targets}\n\n{everything}"


def test_every_target_has_a_row():
    names = {name for name, *_ in report().targets(STORED["results"])}
    assert names == {f"C{number}" for number in range(1, 11)}


def test_the_readme_quotes_what_is_stored():
    results, count = STORED["results"], STORED["results"]["count"]
    for what, row, ours, theirs in (
        ("noise forward", results["training"]["forward g=8 warm"], "diffq_fast uniform", "diffq uniform"),
        ("noise forward and backward", results["training"]["step g=8 warm"], "diffq_fast", "diffq"),
        ("packed state", results["export"]["state g=8"], "diffq_fast", "diffq"),
        ("file on disk, without `fsync`", results["export"]["save g=8"], "diffq_fast", "diffq"),
        ("unpacking bit planes, one thread", results["planes"]["planes 8 bits unpack"], "diffq_fast", "diffq"),
    ):
        fast, slow = row[ours]["median"], row[theirs]["median"]
        speeds = f"{count / fast / 1e6:,.0f} | {count / slow / 1e6:,.0f}"
        assert f"| {what} | {speeds} | {slow / fast:.1f} times |" in README


def test_a_report_tells_what_was_not_measured_apart():
    rows = report().targets({"count": 4, "eval": {"x": {"plain": {"median": 2.0}, "diffq_fast": {"median": 3.0}}}})
    assert rows == [("C9", "eval forward over plain", 1.5, "1.05 / 1.01")]


def test_growth_compares_the_most_weights_with_2_to_the_24():
    row = {"diffq_fast uniform": {"median": 1.0}}
    scaling = {f"forward 2^{size} 2 threads": row for size in (22, 24, 26)} | {"words 2^28 2 threads": row}
    assert report()._growth(scaling) == 0.25


def test_the_table_of_saves_is_what_is_stored():
    export = json.loads((RESULTS / "cpu_export_2core_avx2.json").read_text())["results"]["export"]
    for group_size in (1, 8, 16, 128):
        row = export[f"save g={group_size}"]
        names = "diffq_fast", "diffq_fast, widths by torch", "diffq"
        found = " | ".join(f"{1e3 * row[name]['median']:,.1f}" for name in names)
        assert f"| {group_size} | {found} |" in PAGE


def test_the_table_of_what_changed_is_what_is_stored():
    compared = json.loads((RESULTS / "compared_3f1b8c1_2core_avx512.json").read_text())["results"]
    head = "| time over that of commit 3f1b8c1 | least | median |"
    lines = PAGE.split(head)[1].splitlines()[2:]
    expected = [
        f"| {row} | {found['new over old, least']:.2f} | {found['new over old, median']:.2f} |"
        for row, found in compared.items()
        if row != "old commit"
    ]
    assert lines[: lines.index("")] == expected
