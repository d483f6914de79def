"""The dry run of the GPU's benchmarks (``benchmarks/gpu_check.sh --dry``) notices what would cost GPU time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dry.results import FIGURES, MACHINE, problems_of
from support.paths import ROOT
from support.triton_weights import INTERPRETED, needs_triton

BENCHMARKS = ROOT / "benchmarks"
ROW = {"figure": "", "what": "a pass", "value": 0.5, "ship": "", "passed": None}


def stored(folder):
    """What a dry run leaves that found nothing."""
    machine = dict.fromkeys(MACHINE, "") | {"dry": True}
    results = {
        name: {"machine": dict(machine), "rows": [ROW | {"figure": figure} for figure in sorted(figures)]}
        for name, figures in FIGURES.items()
    }
    return results, lambda: [(folder / name).write_text(json.dumps(each)) for name, each in results.items()]


def test_whole_results_have_no_problems(tmp_path):
    _, write = stored(tmp_path)
    write()
    assert problems_of(tmp_path) == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("value", float("nan"), "value is nan"),
        ("milliseconds", {"uniform": float("inf")}, "uniform is inf"),
        ("passed", "yes", "expected passed to be"),
        ("what", None, "expected what to be"),
        ("failed", {"default": "NameError: peer"}, "failed: {'default': 'NameError: peer'}"),
    ],
)
def test_wrong_rows_are_named(tmp_path, key, value, told):
    results, write = stored(tmp_path)
    results["gpu_export.json"]["rows"][0][key] = value
    write()
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("gpu_export.json: ")
    assert told in problem


@pytest.mark.parametrize(("key", "value"), [("dry", False), ("commit", None)])
def test_wrong_marks_of_the_machine_are_named(tmp_path, key, value):
    results, write = stored(tmp_path)
    results["gpu_export.json"]["machine"][key] = value
    write()
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("gpu_export.json: expected the machine's")


def test_missing_figures_files_and_marks_are_named(tmp_path):
    results, write = stored(tmp_path)
    results["gpu_operators.json"]["rows"].pop(0)
    del results["gpu_export.json"]["machine"]["dry"]
    write()
    (tmp_path / "gpu_transformer.json").unlink()
    assert [problem.split(":")[0] for problem in problems_of(tmp_path)] == list(FIGURES)


def dry_run(script, folder):
    command = [sys.executable, "-P", ROOT / "tests" / "dry" / "run.py", script, folder]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (script.parent, ROOT, BENCHMARKS)))}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


FAULTS = [
    ("ops.quantize_pack(", "ops.quantise_pack(", "quantise_pack"),
    ("store(rows,", "store(row,", "is not JSON serializable"),
    ('times["copy"]', 'times["copied"]', "KeyError: 'copied'"),
    ("COUNT = 2**26", "NUMBER = COUNTED = 2**26", "has no constant COUNT"),
]


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(("right", "wrong", "told"), FAULTS)
def test_a_fault_in_a_benchmark_is_noticed(tmp_path, right, wrong, told):
    text = (BENCHMARKS / "measure_gpu_export.py").read_text()
    assert right in text
    faulty = tmp_path / "measure_gpu_export.py"
    faulty.write_text(text.replace(right, wrong))
    done = dry_run(faulty, tmp_path)
    assert done.returncode != 0
    assert told in done.stderr


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
def test_a_plot_without_a_pass_is_noticed(tmp_path):
    pytest.importorskip("matplotlib")
    _, write = stored(tmp_path)
    write()
    command = [
        sys.executable,
        BENCHMARKS / "plot_gpu.py",
        "--complete",
        "--results",
        tmp_path,
        "--output",
        tmp_path / "x.png",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "found none of ['backward'" in done.stderr
