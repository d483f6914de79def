"""Times this tree against an older commit, call by call in turns. Writes ``results/compared_<commit>_<machine>.json``.

python benchmarks/compare_commits.py COMMIT [--quick] [--rows forward,step] [--rounds 15]

Each of the two packages lives in a process of its own; one call of one, one call of the other, and the other way round
in the next round. The older commit is built into ``build/compared``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from commit_cases import ROWS
from harness import machine_name, store

ROOT = Path(__file__).resolve().parents[1]


def built(commit: str) -> Path:
    """A folder with the package of a commit, which is built where it is not there yet."""
    target = ROOT / "build" / "compared" / commit
    if not (target / "diffq_fast").exists():
        tree = target / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--force", "--detach", str(tree), commit], check=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        subprocess.run([*pip, "--target", str(target), str(tree)], check=True)
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    return target


class Worker:
    """A process with one of the packages, which runs a row when it is told to."""

    def __init__(self, package: Path, quick: bool) -> None:
        command = [
            sys.executable,
            str(Path(__file__).with_name("commit_cases.py")),
            str(package),
            *["quick"][: int(quick)],
        ]
        pipe = subprocess.PIPE
        environment = os.environ | {"PYTHONPATH": str(package)}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.found = Path(self.ask("where"))
        if package.resolve() not in self.found.resolve().parents:
            raise RuntimeError(f"expected the package of {package}, got that of {self.found}")

    def ask(self, what: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(row: str, workers: dict[str, Worker], rounds: int) -> dict[str, Any]:
    """Seconds of both, and how many times as long as the older one the newer one takes."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for worker in workers.values():
        worker.ask(row)  # makes what it needs, and is not timed
    for turn in range(rounds):
        for name in sorted(workers, reverse=turn % 2 == 1):
            times[name].append(float(workers[name].ask(row)))
    found: dict[str, Any] = {
        name: {"median": statistics.median(each), "least": min(each), "rounds": rounds} for name, each in times.items()
    }
    for kind in ("median", "least"):
        found[f"new over old, {kind}"] = round(found["new"][kind] / found["old"][kind], 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--quick", action="store_true", help="small and short: to see that everything runs")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    workers = {"old": Worker(built(arguments.commit), arguments.quick), "new": Worker(ROOT, arguments.quick)}
    results: dict[str, Any] = {"old commit": arguments.commit}
    for row in arguments.rows.split(","):
        results[row] = compare(row, workers, 3 if arguments.quick else arguments.rounds)
        print(f"{row:24}", json.dumps({key: value for key, value in results[row].items() if "over" in key}), flush=True)
    for worker in workers.values():
        worker.close()
    quick = "_quick" if arguments.quick else ""
    print(f"written: {store(f'compared_{arguments.commit}_{machine_name()}{quick}', results)}")


if __name__ == "__main__":
    main()
