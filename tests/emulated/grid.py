"""The whole grid: each cell of ``grid_cells.py`` in Triton's interpreter and as compiled for several GPUs, against the
oracle.

    PYTHONPATH=.:tests python -m emulated.grid [--engines NAME ...] [--only TEXT] [--processes N] [--minutes N]

Each cell's outcome is kept in ``build/emulated_grid.jsonl``: a run that was stopped goes on where it was, and cells are
done again where the kernels, the checks or the emulator have changed since. At its end it stores how many cells of each
family are equal (``benchmarks/results/emulated_grid.json``), and writes the table in ``docs/gpu_emulator.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from emulated.outcomes import PAGE, Outcomes, fingerprint, table, with_table
from support.paths import ROOT

ENGINES = ("interpreter", "sm_80", "sm_90", "sm_100")
EQUAL = "equal"
RESULT = ROOT / "benchmarks" / "results" / "emulated_grid.json"


def kept() -> Outcomes:
    """By engine and cell."""
    return Outcomes("emulated_grid.jsonl", fingerprint("checks.py", "grid_cells.py"))


# -- one process: cells in one engine --------------------------------------------------------------------------


def run_cell(engine: str, check: Any) -> str:
    """``EQUAL``, or what was wrong."""
    from support.emulation import checked_emulation

    try:
        if engine == "interpreter":
            check()
        else:
            with checked_emulation(int(engine.removeprefix("sm_"))):
                check()
    except Exception as error:  # whatever it is, it is this cell's outcome
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return EQUAL


def work(engine: str, part: int, parts: int, only: str, deadline: float) -> None:
    from emulated.grid_cells import cells

    outcomes = kept()
    for cell in [cell for cell in cells() if only in cell.name][part::parts]:
        if (engine, cell.name) in outcomes.known:
            continue
        if time.time() > deadline:
            return
        outcome = run_cell(engine, cell.check)
        outcomes.add((engine, cell.name), outcome)
        if outcome != EQUAL:
            print(f"{engine}: {cell.name}: {outcome}", flush=True)


# -- all of them -----------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    deadline = time.time() + 60 * arguments.minutes

    def worker(engine: str, part: int) -> None:
        environment = os.environ | {"TRITON_INTERPRET": "1" if engine == "interpreter" else "0"}
        command = [sys.executable, "-m", "emulated.grid", "--only", arguments.only]
        command += ["--worker", engine, str(part), str(arguments.processes), str(deadline)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)

    with ThreadPoolExecutor(arguments.processes) as pool:
        tasks = [(engine, part) for part in range(arguments.processes) for engine in arguments.engines]
        list(pool.map(lambda task: worker(*task), tasks))


def summary(cells: Iterable[tuple[str, str]], found: dict[tuple[str, str], str]) -> dict[str, Any]:
    """``cells``: families and names. Of each family and engine how many cells were run, and how many are equal."""
    families: dict[str, dict[str, Any]] = {}
    failed = []
    for family, name in cells:
        row = families.setdefault(family, {"cells": 0, "run": Counter(), "equal": Counter()})
        row["cells"] += 1
        for engine in ENGINES:
            outcome = found.get((engine, name))
            row["run"][engine] += outcome is not None
            row["equal"][engine] += outcome == EQUAL
            if outcome not in (None, EQUAL):
                failed.append({"engine": engine, "cell": name, "outcome": outcome})
    return {"families": families, "failed": failed}


def grid_table(stored: dict[str, Any]) -> str:
    """Each family, and of its cells how many are equal in each engine."""
    families = stored["families"].items()
    rows = [[name, str(row["cells"]), *(_entry(row, engine) for engine in ENGINES)] for name, row in families]
    return table(["kernels and options", "cells", *ENGINES], rows)


def _entry(row: dict[str, Any], engine: str) -> str:
    """All equal: their number; else how many of how many that were run."""
    equal, done = row["equal"][engine], row["run"][engine]
    if not done:
        return "not run"
    return str(equal) if equal == done == row["cells"] else f"{equal} of {done} run"


def store() -> None:
    import triton

    from emulated.grid_cells import cells

    outcomes = kept()
    stored = {"triton": triton.__version__, "sources": outcomes.sources}
    stored |= summary(((cell.family, cell.name) for cell in cells()), outcomes.known)
    RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), "grid", grid_table(stored)))
    print(grid_table(stored))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--only", default="", help="cells whose name has this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no cell after so many")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        engine, part, parts, deadline = arguments.worker
        return work(engine, int(part), int(parts), arguments.only, float(deadline))
    run(arguments)
    return store()


if __name__ == "__main__":
    main()
