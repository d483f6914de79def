"""Follow one weight through a training forward, ``save`` and ``load``, in a process of its own.

    python tests/house/moves.py [ROOT] [--path forward|save|load]

ROOT is a checkout of the project (this one if left out); the result is one line of JSON, with ``core`` telling whether
the compiled core was at work. ``--path`` prints every call
instead, indented by its depth in the package, with a star in front of each move.

A *call* is an entry into a frame of the package's Python code, the resumption of a generator included. A *move* is a
call whose file is not that of the call before it: how often a reader who follows the program turns to another file.
Returning to a caller is no move of its own. The model is ``nn.Sequential(nn.Linear(64, 64, bias=False))``, groups have
8 elements, and each operation ran once before it is traced.

Commit 4576c40 has 59 moves in the forward, 129 in ``save`` and 101 in ``load`` with CPython 3.11 and the compiled core
(130 and 102 where the public name is looked up for the first time). From 3.12 on comprehensions have no frames, and the
counts are a little lower.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parents[2]
OPERATIONS = ("forward", "save", "load")


class Call(NamedTuple):
    """An entry into a function of the package; ``depth`` counts the package's frames below it."""

    file: str
    function: str
    depth: int


def trace(operation: Callable[[], object], package: Path) -> list[Call]:
    """The calls inside ``package`` while ``operation`` runs, in their order."""
    start = f"{package}{os.sep}"
    calls: list[Call] = []
    depth = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal depth
        path = frame.f_code.co_filename
        if event not in ("call", "return") or not path.startswith(start):
            return
        if event == "call":
            calls.append(Call(path[len(start) :].replace(os.sep, "/"), frame.f_code.co_name, depth))
        depth += 1 if event == "call" else -1

    sys.setprofile(note)
    try:
        operation()
    finally:
        sys.setprofile(None)
    return calls


def is_move(before: Call, call: Call) -> bool:
    return before.file != call.file


def operations(folder: Path) -> dict[str, Callable[[], object]]:
    """By name, what is traced: one weight's training forward, ``save`` and ``load``."""
    import torch

    import diffq_fast

    def plain() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))

    torch.manual_seed(0)
    model, target, inputs, path = plain(), plain(), torch.randn(4, 64), folder / "model.safetensors"
    quantizer = diffq_fast.DiffQuantizer(model, min_size=0, group_size=8)
    quantizer.no_optimizer()
    return {
        "forward": lambda: model(inputs),
        "save": lambda: diffq_fast.save(quantizer, path),
        "load": lambda: diffq_fast.load(path, target),
    }


def traced(root: Path) -> dict[str, list[Call]]:
    """The calls of each operation, after a first run of it that loads what is loaded when it is first used."""
    sys.path.insert(0, str(root))
    with tempfile.TemporaryDirectory() as folder:
        made = operations(Path(folder))
        calls = {}
        for name, operation in made.items():
            operation()
            calls[name] = trace(operation, root / "diffq_fast")
    return calls


def counts(calls: list[Call]) -> dict[str, int]:
    return {
        "calls": len(calls),
        "files": len({call.file for call in calls}),
        "moves": sum(map(is_move, calls, calls[1:])),
    }


def print_path(calls: list[Call]) -> None:
    for before, call in zip([calls[0], *calls], calls, strict=False):
        print("*" if is_move(before, call) else " ", f"{'  ' * call.depth}{call.file}:{call.function}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the calls, files and moves of a weight's ways.")
    parser.add_argument("root", type=Path, nargs="?", default=HERE, help="a checkout of the project")
    parser.add_argument("--path", choices=OPERATIONS, help="print the calls of one operation")
    arguments = parser.parse_args()
    calls = traced(arguments.root.resolve())
    if arguments.path:
        print_path(calls[arguments.path])
        return
    from diffq_fast import backend_info

    result: dict[str, Any] = {name: counts(each) for name, each in calls.items()}
    print(json.dumps({"core": backend_info()["backends"]["cpu"]["active"], **result}))


if __name__ == "__main__":
    main()
