"""Puts mutants of every kernel through the checks of ``subjects.py``: which are caught, and how.

    PYTHONPATH=.:tests python -m emulated.mutation_table [--most N] [--kernel NAME] [--minutes N]

``--most``: so many places of each kind in each kernel, evenly spread (default 3), for each set of arguments that Triton
compiles it for. Outcomes are kept in ``build``: a run that was stopped goes on where it was.
After each check it stores them, each mutant by name, in ``benchmarks/results/emulated_mutants.json``, and writes the
table in ``docs/gpu_emulator.md``. ``--minutes 0`` does no more than that.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from functools import partial
from typing import Any

import triton

from emulated.equivalent_mutants import reason
from emulated.outcomes import EMULATOR, PAGE, Outcomes, fingerprint, table, with_table
from emulated.subjects import Subject, subjects
from ptx.mutants import KINDS, SAME_VALUES, Mutant, mutants_of, notice, recorded_ptx
from ptx.triton_driver import Emulator, emulated
from support.paths import ROOT

RESULT = ROOT / "benchmarks" / "results" / "emulated_mutants.json"
CAUGHT, EQUIVALENT, NOT_CAUGHT, FAILED = "caught", "equivalent", "not caught", "could not be run"
# Columns of the table, and the kinds of each.
COLUMNS = {
    "barrier removed": ["barrier removed"],
    "order weakened": [kind for kind in KINDS if "made" in kind],
    "mask of a load removed": ["mask of a load removed"],
    "mask of a store removed": [kind for kind in KINDS if "mask" in kind and "load" not in kind],
    "constant off by one": ["constant off by one"],
}
Key = tuple[str, str, str, str, str]  # kernel, which of its PTX, kind, place, text


def judge(emulator: Emulator, kernel: str, mutant: Mutant, check) -> str:
    """A verdict, and how or why."""
    try:
        said = notice(emulator, mutant, check)
    except Exception as error:  # neither noticed nor unnoticed: a fault of the emulator, which the table shows
        return f"{FAILED}: {type(error).__name__}: {error}"
    if said and said != SAME_VALUES:
        return f"{CAUGHT}: {said}"
    why = said or reason(kernel, mutant)
    return f"{EQUIVALENT}: {why}" if why else NOT_CAUGHT


def sources_of(subject: Subject) -> str:
    """What decides the verdicts of its mutants."""
    made = subject.make.func if isinstance(subject.make, partial) else subject.make
    return fingerprint(made, subject.operators, EMULATOR)


def mutate(emulator: Emulator, subject: Subject, arguments: argparse.Namespace, outcomes: Outcomes) -> None:
    kernels = [each for each in subject.kernels if arguments.kernel in (None, each)]
    if not kernels or time.time() > arguments.deadline:
        return
    emulator.settings.schedule, check, sources = None, subject.make(), sources_of(subject)
    ptx = recorded_ptx(emulator, check)
    for kernel in kernels:
        for version, kind in ((version, kind) for version in range(len(ptx[kernel])) for kind in KINDS):
            for mutant in mutants_of(ptx[kernel][version], kind, arguments.most):
                key = kernel, str(version), kind, str(mutant.place), mutant.text
                if outcomes.get(sources, key) is None and time.time() <= arguments.deadline:
                    outcomes.add(sources, key, judge(emulator, kernel, mutant, check))
                    print(*key, outcomes.get(sources, key), sep=" | ", flush=True)


def entry(key: Key, outcome: str) -> dict[str, Any]:
    kernel, version, kind, place, text = key
    verdict, _, how = outcome.partition(": ")
    where = {"kernel": kernel, "version": int(version), "kind": kind, "place": int(place), "text": text}
    return where | {"verdict": verdict, "how": how}


def summary(mutants: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each kernel and kind: how many are caught, equivalent, and neither; and how they are caught."""
    kernels: dict[str, dict[str, Any]] = {}
    for each in mutants:
        column = next(name for name, kinds in COLUMNS.items() if each["kind"] in kinds)
        kernels.setdefault(each["kernel"], {}).setdefault(column, Counter())[each["verdict"]] += 1
    ways = Counter(each["how"] for each in mutants if each["verdict"] == CAUGHT)
    return {"kernels": kernels, "ways": dict(ways.most_common())}


def mutant_table(stored: dict[str, Any], sources: dict[str, str]) -> str:
    """``sources``: of each kernel today; rows of others are marked."""
    rows = []
    for kernel, row in stored["kernels"].items():
        older = "" if stored["sources"][kernel] == sources[kernel] else " (older sources)"
        rows.append([kernel + older, *(_counts(row.get(column)) for column in COLUMNS)])
    return table(["kernel", *COLUMNS], rows)


def _counts(counts: Counter | None) -> str:
    if not counts:
        return ""
    equivalent = f" + {counts[EQUIVALENT]} equivalent" if counts.get(EQUIVALENT) else ""
    return f"{counts.get(CAUGHT, 0)}{equivalent} of {sum(counts.values())}"


def sources_by_kernel(emulator: Emulator | None) -> dict[str, str]:
    by_subject = [(subject, sources_of(subject)) for subject in subjects(emulator).values()]
    return {kernel: sources for subject, sources in by_subject for kernel in subject.kernels}


def store(outcomes: Outcomes, sources: dict[str, str], most: int) -> None:
    """A kernel of which nothing is known from today's sources keeps what is stored of it."""
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    known = [(key[0], entry(key[1:], outcome)) for key, outcome in outcomes.known.items()]
    new = [each for fingerprint, each in known if sources.get(each["kernel"]) == fingerprint]
    done = {each["kernel"] for each in new}
    kept = [each for each in stored.get("mutants", ()) if each["kernel"] not in done]
    kept_sources = {each["kernel"]: stored["sources"][each["kernel"]] for each in kept}
    result = {
        "most": most,
        "triton": triton.__version__,
        "sources": kept_sources | {kernel: sources[kernel] for kernel in sorted(done)},
    }
    result |= summary([*kept, *new]) | {"mutants": [*kept, *new]}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), "mutants", mutant_table(result, sources)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=3)
    parser.add_argument("--kernel", help="only this one")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no mutant after so many")
    arguments = parser.parse_args()
    arguments.deadline = time.time() + 60 * arguments.minutes
    outcomes = Outcomes(f"emulated_mutants_triton_{triton.__version__}.jsonl")
    with emulated(90) as emulator:
        sources = sources_by_kernel(emulator)
        for subject in subjects(emulator).values():
            mutate(emulator, subject, arguments, outcomes)
            store(outcomes, sources, arguments.most)


if __name__ == "__main__":
    main()
