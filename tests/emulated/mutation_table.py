"""Puts mutants of every kernel through the checks of ``subjects.py``: which are caught, and how.

    PYTHONPATH=.:tests python -m emulated.mutation_table [--most N] [--kernel NAME] [--minutes N]

``--most``: so many places of each kind in each kernel, evenly spread (default 3). Outcomes are kept in
``build/emulated_mutants.jsonl``: a run that was stopped goes on where it was. At its end it stores them in
``benchmarks/results/emulated_mutants.json``, each mutant by name that is not caught, and writes the table in
``docs/gpu_emulator.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from typing import Any

from emulated.equivalent_mutants import reason
from emulated.outcomes import PAGE, Outcomes, fingerprint, table, with_table
from emulated.subjects import subjects
from ptx.mutants import KINDS, SAME_VALUES, Mutant, mutants_of, notice, recorded_ptx
from ptx.triton_driver import emulated
from support.paths import ROOT

RESULT = ROOT / "benchmarks" / "results" / "emulated_mutants.json"
CAUGHT, EQUIVALENT, NOT_CAUGHT = "caught", "equivalent", "not caught"
# Columns of the table, and the kinds of each.
COLUMNS = {
    "barrier removed": ["barrier removed"],
    "order weakened": [kind for kind in KINDS if "made" in kind],
    "mask of a load removed": ["mask of a load removed"],
    "mask of a store removed": ["mask of a store removed"],
    "constant off by one": ["constant off by one"],
}


def judge(emulator, kernel: str, mutant: Mutant, check) -> str:
    """``CAUGHT``, ``EQUIVALENT`` or ``NOT_CAUGHT``, and how or why."""
    said = notice(emulator, kernel, mutant, check)
    if said and said != SAME_VALUES:
        return f"{CAUGHT}: {said}"
    why = said or reason(kernel, mutant)
    return f"{EQUIVALENT}: {why}" if why else NOT_CAUGHT


def mutate(emulator, subject, arguments: argparse.Namespace, outcomes: Outcomes, deadline: float) -> None:
    check, kernels = subject
    if arguments.kernel not in (None, *kernels) or time.time() > deadline:
        return
    ptx = recorded_ptx(emulator, check)
    for kernel in kernels if arguments.kernel is None else [arguments.kernel]:
        for mutant in (each for kind in KINDS for each in mutants_of(ptx[kernel], kind, arguments.most)):
            key = kernel, mutant.kind, str(mutant.place), mutant.text
            if key not in outcomes.known and time.time() <= deadline:
                outcomes.add(key, judge(emulator, kernel, mutant, check))
                print(*key, outcomes.known[key], sep=" | ", flush=True)


def summary(known: dict[tuple, str]) -> dict[str, Any]:
    """Of each kernel and kind: how many are caught, equivalent, and neither; how; and those that are not caught."""
    kernels: dict[str, dict[str, Any]] = {}
    ways: Counter[str] = Counter()
    others = []
    for (kernel, kind, place, text), outcome in known.items():
        verdict, _, how = outcome.partition(": ")
        column = next(name for name, kinds in COLUMNS.items() if kind in kinds)
        kernels.setdefault(kernel, {}).setdefault(column, Counter())[verdict] += 1
        if verdict == CAUGHT:
            ways[how] += 1
        else:
            mutant = {"kernel": kernel, "kind": kind, "place": int(place), "text": text}
            others.append(mutant | {"verdict": verdict, "why": how})
    return {"kernels": kernels, "ways": dict(ways.most_common()), "others": others}


def mutant_table(stored: dict[str, Any]) -> str:
    rows = [[kernel, *(_entry(row.get(column)) for column in COLUMNS)] for kernel, row in stored["kernels"].items()]
    return table(["kernel", *COLUMNS], rows)


def _entry(counts: Counter | None) -> str:
    if not counts:
        return ""
    equivalent = f" + {counts[EQUIVALENT]} equivalent" if counts.get(EQUIVALENT) else ""
    return f"{counts.get(CAUGHT, 0)}{equivalent} of {sum(counts.values())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=3)
    parser.add_argument("--kernel", help="only this one")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no mutant after so many")
    arguments = parser.parse_args()
    outcomes = Outcomes("emulated_mutants.jsonl", fingerprint("subjects.py"))
    deadline = time.time() + 60 * arguments.minutes
    with emulated(90) as emulator:
        for subject in subjects(emulator).values():
            mutate(emulator, subject, arguments, outcomes, deadline)
    stored = {"most": arguments.most, "sources": outcomes.sources} | summary(outcomes.known)
    RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), "mutants", mutant_table(stored)))


if __name__ == "__main__":
    main()
