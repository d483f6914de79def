"""Puts mutants of every kernel through the checks of ``subjects.py``, and prints which were noticed, and how.

    PYTHONPATH=.:tests python -m emulated.mutation_table [--most N] [--kernel NAME]

``--most``: so many places of each kind in each kernel, evenly spread (default 6). A mutant that nothing notices is
printed with its instruction, to be judged: it may be harmless.
"""

from __future__ import annotations

import argparse
from collections import Counter

from emulated.subjects import subjects
from ptx.mutants import KINDS, mutants_of, notice, recorded_ptx
from ptx.triton_driver import emulated


def mutate(emulator, kernel: str, ptx: str, check, most: int) -> None:
    for kind in KINDS:
        found = mutants_of(ptx, kind, most)
        said = {mutant: notice(emulator, kernel, mutant, check) for mutant in found}
        ways = Counter(said.values())
        if found:
            summary = "; ".join(f"{way} ({number})" for way, number in ways.most_common() if way)
            print(f"| {kernel} | {kind} | {len(found) - ways['']} of {len(found)} | {summary} |", flush=True)
        for mutant in (mutant for mutant in found if not said[mutant]):
            print(f"    not noticed: place {mutant.place}: {mutant.text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=6)
    parser.add_argument("--kernel", help="only this one")
    arguments = parser.parse_args()
    with emulated(90) as emulator:
        for check, kernels in subjects(emulator).values():
            if arguments.kernel in (None, *kernels):
                ptx = recorded_ptx(emulator, check)
                for kernel in kernels if arguments.kernel is None else [arguments.kernel]:
                    mutate(emulator, kernel, ptx[kernel], check, arguments.most)


if __name__ == "__main__":
    main()
