"""The Triton kernels compiled without a GPU: for every target, and on sm_90 within the static budgets."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]


def run(*arguments):
    """In a process of its own: a session may have Triton interpret its kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(BENCHMARKS.parent)
    command = [sys.executable, BENCHMARKS / "static_budgets.py", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_kernels_compile_for_every_target_and_keep_their_budgets():
    done = run("--all-targets")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("kernels compile") == 4
    assert "every ship budget holds" in done.stdout


def test_every_kernel_of_the_backend_is_compiled_and_counted(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from static_kernels import CASES

    files = (ROOT / "diffq_fast" / "backends" / "triton").glob("*_kernels.py")
    defined = {name for file in files for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.MULTILINE)}
    assert {case.kernel.__name__ for case in CASES} == defined
    assert all(case.weights for case in CASES)


def test_broken_budgets_are_named(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels have no code")
    from static_budgets import BUDGETS, UNDER_AUTOCAST, broken_budgets

    kept = {"narrow": 0, "rounded_otherwise": 0, "stack_bytes": 0, "registers": 128}
    rows = [{"kernel": name, "instructions_per_weight": ship, **kept} for name, ship, _ in BUDGETS.values()]
    rows += [{"kernel": name, "instructions_per_weight": 99.0, **kept, "registers": 90} for name in UNDER_AUTOCAST]
    assert broken_budgets(rows) == []
    rows[0] |= {"instructions_per_weight": 20.5, "narrow": 3, "stack_bytes": 8}
    assert [problem[:2] for problem in broken_budgets(rows)] == ["S1", "S4", "S5"]
    rows[0] |= {"instructions_per_weight": 20.0, "narrow": 0, "stack_bytes": 0}
    one_launch = next(row for row in rows if row["kernel"] == "one launch: forward uniform g=8 to bf16")
    one_launch["registers"] = 129
    assert broken_budgets(rows) == [f"registers: {one_launch['kernel']}: at most 128, found 129"]
    one_launch |= {"registers": 128, "narrow": 2, "rounded_otherwise": 1}
    assert [problem.split(":")[0] for problem in broken_budgets(rows)] == ["S4", "rounding"]


def test_kernels_that_grew_are_named(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels have no code")
    from static_budgets import grown

    kept = {"warps": 4, "shared_bytes": 0}
    stored = [{"kernel": "loop", "instructions_per_weight": 20.0, "registers": 80, **kept}]
    stored += [{"kernel": "none", "instructions_per_weight": None, "registers": 80, **kept}]
    assert grown(stored, stored) == []
    rows = [stored[0] | {"instructions_per_weight": 22.5}, stored[1] | {"registers": 88}]
    assert [problem.split(", found")[0] for problem in grown(rows, stored)] == [
        "loop: at most 1.1 times the stored 20.0 instructions per weight",
        "none: 6 programs resident, as with the stored 80 registers",
    ]
    rows = [stored[0] | {"kernel": "another"}, stored[1] | {"instructions_per_weight": None, "registers": 72}]
    assert [problem.split(":")[0] for problem in grown(rows, stored)] == ["another"]
