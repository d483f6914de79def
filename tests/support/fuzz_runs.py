"""Draw files and read them, many times over, in one process or in several.

python tests/fuzz_NAME.py [runs] [seed] [--processes N]
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from support.fuzz_limits import thrice

REPORTED = 20_000  # files


class Fuzzer(Protocol):
    """suffix: of the files that it leaves."""

    suffix: str

    def draw(self, seed: int) -> bytes:
        """A file: the same one for the same seed."""
        ...

    def read(self, data: bytes) -> bool:
        """Whether it is valid; anything but a promised refusal is raised."""
        ...


def run(fuzzer: Fuzzer, runs: int, seed: int) -> None:
    """Stops at the first finding, and leaves its file in the working folder."""
    valid, slowest, start = 0, 0.0, time.perf_counter()
    for index in range(runs):
        data = fuzzer.draw(seed + index)
        begin = time.process_time()
        results: list[bool] = []
        try:
            thrice(lambda: results.append(fuzzer.read(data)))  # noqa: B023 (called at once)
        except BaseException:
            name = f"refute_{hashlib.sha256(data).hexdigest()[:12]}{fuzzer.suffix}"
            Path(name).write_bytes(data)
            print(f"run {seed + index}: {name}", file=sys.stderr)
            raise
        valid += results[-1]
        slowest = max(slowest, time.process_time() - begin)
        if (index + 1) % REPORTED == 0 or index + 1 == runs:
            speed = (index + 1) / (time.perf_counter() - start)
            counts = f"{index + 1} files from {seed} on without a finding, {valid} of them valid"
            print(f"{counts}; {speed:.0f} a second, the slowest {slowest:.2f} s", flush=True)
    if runs >= 1000 and not 0 < valid < runs:
        raise AssertionError("expected some files that are read and some that are refused")


def main(make_fuzzer: type[Fuzzer]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="?", type=int, default=2000)
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    if options.processes == 1:
        run(make_fuzzer(), options.runs, options.seed)
        return
    bounds = [options.seed + options.runs * part // options.processes for part in range(options.processes + 1)]
    parts = [
        subprocess.Popen([sys.executable, sys.argv[0], str(end - begin), str(begin)]) for begin, end in pairwise(bounds)
    ]
    codes = [part.wait() for part in parts]
    if any(codes):
        sys.exit(1)
