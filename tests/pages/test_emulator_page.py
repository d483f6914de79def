"""The figures of ``docs/gpu_emulator.md`` are those that ``benchmarks/measure_emulator.py`` stored."""

from __future__ import annotations

import json

import pytest

from support.paths import ROOT

STORED = json.loads((ROOT / "benchmarks" / "results" / "emulator.json").read_text())
PAGE = " ".join((ROOT / "docs" / "gpu_emulator.md").read_text().split())


def test_speeds_are_those_that_are_stored():
    speeds = STORED["speeds"]
    forward, backward = (speeds[f"{name}, weights a second"] / 1e6 for name in ("forward", "backward"))
    assert f"emulates {forward:.2f} million weights of the forward (range and noise) or {backward:.2f} million" in PAGE
    few, translated = speeds["few weights, forward and backward"], speeds["parsing and translating them"]
    assert f"take {few:.2f} s once translated" in PAGE
    assert f"parsing and translating their {speeds['kernels of those']} kernels {translated:.2f} s" in PAGE


@pytest.mark.parametrize("name", STORED["cells"])
def test_cells_take_what_is_stored(name):
    anew, cached = STORED["cells"][name]["compiled anew"], STORED["cells"][name]["from the cache"]
    assert f"| {name} | {anew:.1f} | {cached:.1f} |" in PAGE


@pytest.mark.parametrize("arch", STORED.get("ci", ()))
def test_the_part_of_ci_takes_what_is_stored(arch):
    minutes = STORED["ci"][arch]["processor"] / 60
    assert f"{minutes:.1f} minutes ({arch})" in PAGE
