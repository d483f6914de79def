"""Counts the core's instructions per weight with valgrind and stores them as ``results/instructions_<compiler>.json``.

    python benchmarks/count_instructions.py              counts everything, and stores it with a table beside it
    python benchmarks/count_instructions.py --check      compares with what is stored, operations of --only alone

Unlike times, counts are the same on a busy machine and from run to run of one build. An operation is done once and
three times in processes of their own; half the difference is one operation, without start-up, input and first use.
Valgrind runs no AVX-512; those counts come from the processor's own counter, through ``perf stat``, where there is one.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "instructions"
RESULTS = Path(__file__).parent / "results"
COUNT = 1 << 16
LARGEST_DRIFT = 0.05
CHECKED = "forward uniform g=8,forward gaussian g=8,backward uniform g=8,range,quantize_pack mixed,pack_planes 8 bits"


def build() -> Path:
    """The program that does one operation, with the flags of a wheel."""
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DDIFFQ_FAST_PYTHON=OFF", "-DDIFFQ_FAST_OPERATIONS=ON"]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(BUILD), *options],
        ["cmake", "--build", str(BUILD), "--target", "run_operation", "--parallel"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return BUILD / "run_operation"


def lines(*command: str | Path) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def with_valgrind(command: list[str]) -> int:
    callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    done = subprocess.run([*callgrind, *command], capture_output=True, text=True, check=True)
    return int(re.findall(r"Collected : (\d+)", done.stderr)[0])


def with_perf(command: list[str]) -> int:
    done = subprocess.run(
        ["perf", "stat", "-x,", "-e", "instructions:u", *command], capture_output=True, text=True, check=True
    )
    return int(re.findall(r"^(\d+),.*instructions", done.stderr, re.M)[0])


def perf_counts() -> bool:
    """Whether this machine lets a program count its instructions."""
    try:
        return with_perf(["true"]) > 0
    except (OSError, IndexError, subprocess.CalledProcessError):
        return False


def per_weight(program: Path, instruction_set: str, operation: str) -> float:
    counter = with_perf if instruction_set == "avx512" else with_valgrind
    once, thrice = (counter([str(program), instruction_set, operation, str(COUNT), times]) for times in ("1", "3"))
    return round((thrice - once) / 2 / COUNT, 3)


def instruction_sets(program: Path) -> tuple[list[str], list[str]]:
    """Those that can be counted here, and a line for each other."""
    runs = [
        name
        for name in ("scalar", "avx2", "avx512", "neon")
        if not subprocess.run([program, name, "range", "8", "1"], capture_output=True).returncode
    ]
    if "avx512" in runs and not perf_counts():
        reason = "valgrind runs no AVX-512, and this machine has no counter of instructions for programs (perf stat)"
        return [name for name in runs if name != "avx512"], [f"avx512 is not counted: {reason}"]
    return runs, []


def compiler(program: Path) -> str:
    return lines(program, "scalar", "range", "8", "1")[0]


def count(program: Path, operations: list[str]) -> dict[str, Any]:
    sets, notes = instruction_sets(program)
    found = {name: {each: per_weight(program, name, each) for each in operations} for name in sets}
    valgrind = lines("valgrind", "--version")[0]
    return {"compiler": compiler(program), "valgrind": valgrind, "count": COUNT, "notes": notes, "per_weight": found}


def table(results: dict[str, Any]) -> str:
    """Markdown: instructions per weight, a column for each instruction set."""
    found = results["per_weight"]
    rows = [
        f"Instructions per weight, {results['count']:,} weights of float32, one thread, {results['compiler']}.",
        "",
        "| operation | " + " | ".join(found) + " |",
        "|---|" + "---|" * len(found),
    ]
    rows += [
        f"| {each} | " + " | ".join(f"{found[name][each]:.2f}" for name in found) + " |" for each in found["scalar"]
    ]
    return "\n".join([*rows, "", *results["notes"]]).rstrip() + "\n"


def stored_file(program: Path) -> Path:
    return RESULTS / f"instructions_{compiler(program).split('.')[0].replace(' ', '_').lower()}.json"


def drifts(stored: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for each count that has moved by more than ``LARGEST_DRIFT``."""
    moved = []
    for name, counts in found["per_weight"].items():
        for operation, now in counts.items():
            before = stored["per_weight"].get(name, {}).get(operation)
            if before is not None and abs(now - before) > LARGEST_DRIFT * before:
                moved.append(f"{name}, {operation}: {before} instructions per weight are stored, {now} are counted")
    return moved


def check(program: Path, operations: list[str]) -> int:
    path = stored_file(program)
    if not path.exists():
        print(f"nothing is stored for this compiler ({path.name}); not compared")
        return 0
    stored = json.loads(path.read_text())["results"]
    for name, here in (("compiler", compiler(program)), ("valgrind", lines("valgrind", "--version")[0])):
        if stored[name] != here:
            print(f"counted with {name} {stored[name]}, here is {here}; not compared")
            return 0
    moved = drifts(stored, count(program, operations))
    print("\n".join(moved) or f"{len(operations)} operations need the instructions that are stored")
    if moved:
        print(f"where this is meant: python benchmarks/{Path(__file__).name}")
    return len(moved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and store nothing")
    parser.add_argument("--only", default=CHECKED, help="operations to compare, with commas between")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("count_instructions: valgrind was not found; apt-get install valgrind")
    program = build()
    if arguments.check:
        sys.exit(check(program, arguments.only.split(",")) > 0)
    from harness import store

    results = count(program, lines(program))
    path = store(stored_file(program).stem, results)
    path.with_suffix(".md").write_text(table(results))
    print(table(results), path)


if __name__ == "__main__":
    main()
