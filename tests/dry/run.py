"""Python with a stand-in for CUDA: takes the arguments of ``python -P`` that ``benchmarks/gpu_check.sh`` uses.

python -P tests/dry/run.py -c CODE | -m pytest ARGUMENTS | benchmarks/SCRIPT.py ARGUMENTS

A script is imported, its constants are made small (``sizes.py``), and its ``main`` is called. Fails too where the
emulator of kernels found a problem: an access outside of a tensor, a race.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).resolve().parent.parent)


def _script(path: str) -> int:
    from dry.sizes import make_small

    _few_rounds()
    name = Path(path).stem
    module = importlib.import_module(name)
    if Path(module.__file__ or "").resolve() != Path(path).resolve():
        raise ImportError(f"dry run: {name}: expected {path}, found {module.__file__}")
    make_small(module)
    return module.main() or 0


def _few_rounds() -> None:
    """Times everything once, and marks what is stored."""
    import gpu_timing

    interleaved, host, machine = gpu_timing.interleaved, gpu_timing.host_milliseconds, gpu_timing.machine
    gpu_timing.interleaved = lambda variants, rounds=15, warmup=3: interleaved(variants, 1, 0)
    gpu_timing.host_milliseconds = lambda work, rounds=15: host(work, 1)
    gpu_timing.machine = lambda: machine() | {"dry": True}


def _pytest(arguments: list[str]) -> int:
    import pytest

    from dry.selection import Selection

    return int(pytest.main(arguments, plugins=[Selection()]))


def _run(arguments: list[str]) -> int:
    match arguments:
        case ["-c", code]:
            exec(code, {"__name__": "__main__"})
            return 0
        case ["-m", "pytest", *rest]:
            return _pytest(rest)
        case [path, *rest] if path.endswith(".py"):
            sys.argv = [path, *rest]
            return _script(path)
    raise SystemExit(f"dry run: expected -c CODE, -m pytest or a script, got {arguments}")


def main() -> int:
    sys.path.insert(0, TESTS)
    from dry.devices import install
    from ptx.launch import Settings
    from ptx.triton_driver import emulated

    sys.path.remove(TESTS)  # what gpu_check.sh does not copy must not be found there
    emulator: Any
    with emulated(90, Settings()) as emulator:
        install(emulator)
        status = _run(sys.argv[1:])
    if sys.argv[0].endswith(".py") and "measure" in sys.argv[0] and not emulator.launches:
        print("dry run: no kernel was launched", file=sys.stderr)
        status = 1
    problems = emulator.problems.serious()
    for problem in problems:
        print(f"dry run: {problem}", file=sys.stderr)
    return status or bool(problems)


if __name__ == "__main__":
    sys.exit(main())
