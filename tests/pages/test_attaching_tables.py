"""The tables of docs/cpu.md on what lies beside the kernels have the figures that are stored."""

import json

import pytest

from support.paths import ROOT

PAGE = (ROOT / "docs" / "cpu.md").read_text(encoding="utf-8")
STORED = json.loads((ROOT / "benchmarks" / "results" / "attaching_2core_avx512.json").read_text())["results"]


def attach():
    return [[name, *(f"{seconds:.2f}" for seconds in row.values())] for name, row in STORED["attach"].items()]


def looks():
    for name, row in STORED["fingerprint"].items():
        times = f"{1e3 * row['plain forward']:.1f}", f"{1e3 * row['look']:.2f}"
        yield [name, *times, f"{100 * row['share']:.1f} %"]


def places():
    small = STORED["small"]
    for place, time in list(small["places"].items())[:10]:
        share = time / small["processor milliseconds under the profiler"]
        yield [f"`{place.removeprefix('~: ')}`", f"{100 * share:.0f} %"]


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        ("| | 512 | 2,048 | 8,192 |", attach),
        ("| | forward | look | share |", looks),
        ("| place | share |", places),
    ],
)
def test_the_table_is_the_stored_one(head, rows):
    lines = PAGE.split(f"{head}\n")[1].splitlines()[1:]
    assert [line.strip("| ").split(" | ") for line in lines[: lines.index("")]] == list(rows())


def test_attaching_is_linear_and_below_a_second():
    for row in STORED["attach"].values():
        assert row["8192"] < 1.0
        assert row["8192"] < 2 * 16 * row["512"]
