"""The figures of ``docs/gpu.md`` are those that are stored, and the benchmarks it names can be collected anywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from support.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "gpu.md").read_text()
FIGURES = {
    "forward float32 uniform, 12 B/w over copy": "G1",
    "forward to bf16, 10 B/w over copy": "G2",
    "Gaussian over uniform, time of the forward": "G3",
    "backward float32, 8 B/w over copy": "G4",
    "backward from bf16 gradients, 6 B/w over copy": "G4 bf16",
    'step under autocast over plain, %, noisy_dtype="auto"': "G8",
    "the same with noisy weights in float32": "G8 own dtype",
    "quantise + pack, 4 bits, over copy": "G11 pack",
    "unpack + dequantise, 4 bits, over copy": "G11 unpack",
    "the same in one launch, 8 B/w over copy": "G1 one launch",
    "the same in one launch, 6 B/w over copy": "G2 one launch",
}


def stored(name):
    return json.loads((RESULTS / name).read_text())


def table(heading):
    """Rows of the page's table below this heading row, as lists of cells."""
    rows = PAGE[PAGE.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_static_figures_are_those_that_are_stored():
    first, second = (
        {row["kernel"]: row for row in stored(f"static_triton_{version}.json")["rows"]}
        for version in ("3.6.0", "3.9.0")
    )
    shown = table("| kernel | instructions, 3.6.0 |")
    assert [row[0] for row in shown] == list(first)
    for name, one, other, budget, *registers, spilled in shown:
        costs = [first[name]["instructions_per_weight"], second[name]["instructions_per_weight"]]
        assert [one, other] == [f"{cost:.2f}" for cost in costs]
        assert registers == [str(first[name]["registers"]), str(second[name]["registers"])]
        assert int(spilled) == first[name]["stack_bytes"] + second[name]["stack_bytes"]
        if budget:
            assert max(costs) <= float(budget.split()[-3])


def test_predicted_figures_are_those_that_are_stored():
    chips = stored("gpu_predictions.json")["chips"]
    heading = "| figure | what | H100 SXM |"
    names = [cell.strip() for cell in PAGE[PAGE.index(heading) :].splitlines()[0].strip("|").split("|")][2:-2]
    assert names == list(chips)
    shown = table(heading)
    assert sorted(row[1] for row in shown) == sorted(FIGURES)
    for _, what, *values in shown:
        assert values[: len(names)] == [f"{chips[chip]['figures'][FIGURES[what]]:.3f}" for chip in names]


def test_predictions_are_those_that_are_stored():
    chips = stored("gpu_predictions.json")["chips"]
    kernels = [{row["kernel"]: row for row in chips[chip]["kernels"]} for chip in ("H100 SXM", "H200", "B200")]
    shown = table("| kernel | bytes | resident |")
    assert [row[0] for row in shown] == list(kernels[0])
    for name, *cells in shown:
        on_h200 = kernels[1][name]
        expected = [f"{on_h200['bytes_per_weight']:g}", str(on_h200["resident_programs"])]
        expected.append(f"{on_h200['kilobytes_in_flight']:.0f}")
        for own in kernels:
            expected += [f"{own[name]['predicted_picoseconds']:.2f}", own[name]["binding"]]
        assert cells == [*expected, f"{on_h200['of_copy']:.2f}"]
    small = chips["H200"]["small"]
    expected = [[row["pass"], *(f"{time:.1f}" for time in row["microseconds"].values())] for row in small]
    assert table("| pass over one weight, H200 |") == expected


def test_what_was_lowered_is_shown_as_it_was_and_as_it_is():
    before = stored("gpu_predictions_before.json")["rows"]
    now = {row["kernel"]: row for row in stored("gpu_predictions.json")["chips"]["H200"]["kernels"]}
    shown = table("| kernel, H200 | instructions before |")
    assert [row[0] for row in shown] == [row["kernel"] for row in before]
    for old, row in zip(before, shown, strict=True):
        new = now[old["kernel"]]
        assert row[1:3] == [f"{each['instructions_per_weight']:.1f}" for each in (old, new)]
        times = [
            [f"{each['predicted_picoseconds']:.2f}", each["binding"], f"{each['of_copy']:.2f}"] for each in (old, new)
        ]
        assert row[3:] == [*times[0], *times[1]]
        assert new["predicted_picoseconds"] < old["predicted_picoseconds"]


def test_the_page_says_whether_anything_was_measured():
    assert ("Nothing on this page has been measured" in PAGE) != (RESULTS / "gpu_operators.json").exists()


def test_commands_that_the_page_names_exist():
    for path in re.findall(r"benchmarks/\w+\.(?:py|sh)", PAGE):
        assert (ROOT / path).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="would time the GPU")
def test_benchmarks_skip_cleanly_without_a_gpu():
    options = ["--benchmark-enable", "--benchmark-only", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_gpu.py", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 skipped" in done.stdout


def test_the_plot_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    times = {"uniform": 0.3, "one launch": 0.2}
    rows = [{"milliseconds": times, "weights": 10**8}, {"milliseconds": {"copy": 1.0}}]
    (tmp_path / "gpu_operators.json").write_text(json.dumps({"machine": {"gpu": "NVIDIA H100 80GB"}, "rows": rows}))
    output = tmp_path / "roofline.png"
    command = [sys.executable, ROOT / "benchmarks" / "plot_gpu.py", "--results", tmp_path, "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes()[:4] == b"\x89PNG"
