"""The whole grid: each cell of ``grid_cells.py`` in Triton's interpreter and as compiled for several GPUs, against the
oracle.

    PYTHONPATH=.:tests python -m emulated.grid [--engines NAME ...] [--only TEXT] [--every] [--processes N]
        [--minutes N]

Each cell's outcome is kept in ``build``: a run that was stopped goes on where it was, and cells are done again where
their kernels, their checks or the emulator have changed since. At its end it stores how many cells of each family are
equal (``benchmarks/results/emulated_grid.json``), and writes the table in ``docs/gpu_emulator.md``; no more than that
with ``--minutes 0``. ``--every``: with each combination of options, not only each two of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import triton

from emulated.outcomes import EMULATOR, PAGE, Outcomes, fingerprint, table, with_table
from support.paths import ROOT

if TYPE_CHECKING:
    from emulated.grid_cells import Cell

ENGINES = ("interpreter", "sm_80", "sm_90", "sm_100")
USUAL = ENGINES[:3]  # the others where they are asked for
EQUAL = "equal"
RESULT = ROOT / "benchmarks" / "results" / "emulated_grid.json"


def kept() -> Outcomes:
    """By engine and cell."""
    return Outcomes(f"emulated_grid_triton_{triton.__version__}.jsonl")


def sources_of(cell: Cell, engine: str) -> str:
    """What decides its outcome."""
    return _fingerprint(cell.function, cell.operators, *([] if engine == "interpreter" else [EMULATOR]))


_fingerprint = functools.cache(fingerprint)


# -- one process: cells in one engine --------------------------------------------------------------------------


def run_cell(engine: str, check) -> str:
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


def work(engine: str, part: int, deadline: float, arguments: argparse.Namespace) -> None:
    from emulated.grid_cells import cells

    outcomes = kept()
    chosen = [cell for cell in cells(arguments.every) if arguments.only in cell.name]
    for cell in chosen[part :: arguments.processes]:
        sources, key = sources_of(cell, engine), (engine, cell.name)
        if outcomes.get(sources, key) is not None:
            continue
        if time.time() > deadline:
            return
        outcome = run_cell(engine, cell.check)
        outcomes.add(sources, key, outcome)
        if outcome != EQUAL:
            print(f"{engine}: {cell.name}: {outcome}", flush=True)


# -- all of them -----------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    deadline = time.time() + 60 * arguments.minutes

    def worker(engine: str, part: int) -> None:
        environment = os.environ | {"TRITON_INTERPRET": "1" if engine == "interpreter" else "0"}
        command = [sys.executable, "-m", "emulated.grid", "--only", arguments.only, *["--every"] * arguments.every]
        command += ["--processes", str(arguments.processes), "--worker", engine, str(part), str(deadline)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)

    with ThreadPoolExecutor(arguments.processes) as pool:
        tasks = [(engine, part) for part in range(arguments.processes) for engine in arguments.engines]
        list(pool.map(lambda task: worker(*task), tasks))


def summary(cells: Iterable[Cell], outcomes: Outcomes) -> dict[str, Any]:
    """Of each family and engine how many cells were run, how many are equal, and of which sources; and those that are
    not equal."""
    families: dict[str, dict[str, Any]] = {}
    failed = []
    for cell in cells:
        row = families.setdefault(cell.family, {"cells": 0, "run": Counter(), "equal": Counter(), "sources": {}})
        row["cells"] += 1
        for engine in ENGINES:
            row["sources"][engine] = sources_of(cell, engine)
            outcome = outcomes.get(row["sources"][engine], (engine, cell.name))
            row["run"][engine] += outcome is not None
            row["equal"][engine] += outcome == EQUAL
            if outcome not in (None, EQUAL):
                failed.append({"engine": engine, "cell": cell.name, "outcome": outcome})
    return {"families": families, "failed": failed}


def with_older(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """``new``, and where an engine has run nothing of a family in it, what ``old`` has of that."""
    for name, row in new["families"].items():
        before = old["families"].get(name)
        for engine in ENGINES:
            if before and before["cells"] == row["cells"] and not row["run"][engine]:
                for entry in ("run", "equal", "sources"):
                    row[entry][engine] = before[entry][engine]
                new["failed"] += [
                    each for each in old["failed"] if each["engine"] == engine and each["cell"].startswith(f"{name}: ")
                ]
    return new


def grid_table(stored: dict[str, Any], sources: dict[str, dict[str, str]]) -> str:
    """Each family, and of its cells how many are equal in each engine that was used. ``sources``: today's, by family
    and engine."""
    families, rows = stored["families"].values(), []
    used = [each for each in ENGINES if each in USUAL or any(row["run"][each] for row in families)]
    for name, row in stored["families"].items():
        entries = [
            _entry(row, engine)
            + (" (older sources)" if row["run"][engine] and _is_older(row, engine, sources[name]) else "")
            for engine in used
        ]
        rows.append([name, str(row["cells"]), *entries])
    return table(["kernels and options", "cells", *used], rows)


def _is_older(row: dict[str, Any], engine: str, sources: dict[str, str]) -> bool:
    return row["sources"][engine] != sources[engine]


def sources_by_family() -> dict[str, dict[str, str]]:
    from emulated.grid_cells import cells

    return {cell.family: {engine: sources_of(cell, engine) for engine in ENGINES} for cell in cells()}


def _entry(row: dict[str, Any], engine: str) -> str:
    """All equal: their number; else how many of how many that were run."""
    equal, done = row["equal"][engine], row["run"][engine]
    if not done:
        return "not run"
    return str(equal) if equal == done == row["cells"] else f"{equal} of {done} run"


def store(every: bool) -> None:
    from emulated.grid_cells import cells

    old = json.loads(RESULT.read_text()) if RESULT.exists() else {"families": {}, "failed": []}
    stored = {"triton": triton.__version__} | with_older(summary(cells(every), kept()), old)
    RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    made = grid_table(stored, sources_by_family())
    PAGE.write_text(with_table(PAGE.read_text(), "grid", made))
    print(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=USUAL)
    parser.add_argument("--only", default="", help="cells whose name has this text")
    parser.add_argument("--every", action="store_true", help="each combination of options")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no cell after so many")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        engine, part, deadline = arguments.worker
        return work(engine, int(part), float(deadline), arguments)
    if arguments.minutes:
        run(arguments)
    return store(arguments.every)


if __name__ == "__main__":
    main()
