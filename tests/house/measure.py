"""How the house of diffq_fast is built, in figures: rooms, files, functions, classes, imports and moves.

    PYTHONPATH=tests python -m house.measure [ROOT] [--json] [--list]

ROOT is a checkout of the project (this one if left out). Its sources are read, and a weight is followed through a
training forward, ``save`` and ``load`` in a process of its own (``moves.py``). ``--list`` adds the places behind each
figure. ``test_house.py`` holds the limits; the files beside this one say what each figure counts. What commit 4576c40
had is in ``BEFORE``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from house.classes import Classes, ClassKey
from house.parameters import long_cpp_parameter_lists, long_parameter_lists
from house.private_names import private_names_taken
from house.sources import ROOT, Sources

LONG_FILE = 300
OPERATIONS = {"forward": "one weight's training forward", "save": "save", "load": "load"}
# What the house must keep; the moves are those of the compiled core.
LIMITS = {
    "modules at the root": 8,
    "circles of imports": 0,
    "private names taken from another module": 0,
    "functions with more than seven parameters": 15,
    "private names of the largest class": 25,
    "levels of inheritance": 2,
    "moves of one weight's training forward": 20,
    "moves of save": 45,
    "moves of load": 40,
}
BEFORE = {
    "rooms": 2,
    "modules at the root": 43,
    "files over 300 lines": 6,
    "lines of the median file": 128,
    "lines of the median function": 7,
    "circles of imports": 2,
    "private names taken from another module": 23,
    "functions with more than seven parameters": 52,
    "C++ functions with more than seven parameters": 8,
    "private names of the largest class": 69,
    "levels of inheritance": 5,
    "calls of one weight's training forward": 136,
    "files of one weight's training forward": 13,
    "moves of one weight's training forward": 59,
    "calls of save": 219,
    "files of save": 19,
    "moves of save": 129,
    "calls of load": 299,
    "files of load": 14,
    "moves of load": 101,
}


class Figure(NamedTuple):
    """A number with its name, and the places that it counts."""

    name: str
    value: float
    places: Sequence[object] = ()


def figures_of_sources(root: Path = ROOT) -> list[Figure]:
    """What reading the sources tells."""
    sources = Sources(root)
    return [*_files(sources), *_functions(sources), *_borders(sources), *_classes(sources)]


def _files(sources: Sources) -> list[Figure]:
    rooms = sorted(path.parent.name for path in sources.folder.glob("*/__init__.py"))
    at_root = sorted(path.name for path in sources.folder.glob("*.py"))
    lengths = {module: len(text.splitlines()) for module, text in sources.texts.items()}
    long = [f"{module} {length}" for module, length in lengths.items() if length > LONG_FILE]
    return [
        Figure("rooms", len(rooms), rooms),
        Figure("modules at the root", len(at_root), at_root),
        Figure(f"files over {LONG_FILE} lines", len(long), long),
        Figure("lines of the median file", median(lengths.values())),
    ]


def _functions(sources: Sources) -> list[Figure]:
    """Lines are counted from ``def`` to the end, docstrings included."""
    lengths = [(node.end_lineno or 0) - node.lineno + 1 for _, node in sources.functions()]
    long, long_cpp = long_parameter_lists(sources), long_cpp_parameter_lists(sources.root)
    return [
        Figure("lines of the median function", median(lengths)),
        Figure("functions with more than seven parameters", len(long), long),
        Figure("C++ functions with more than seven parameters", len(long_cpp), long_cpp),
    ]


def _borders(sources: Sources) -> list[Figure]:
    circles, taken = sources.circles(), private_names_taken(sources)
    return [
        Figure("circles of imports", len(circles), [" ".join(circle) for circle in circles]),
        Figure("private names taken from another module", len(taken), taken),
    ]


def _classes(sources: Sources) -> list[Figure]:
    classes = Classes(sources)

    def most_private(key: ClassKey) -> tuple[int, ClassKey]:
        return len(classes.private_names(key)), key

    def deepest(key: ClassKey) -> tuple[int, ClassKey]:
        return classes.levels(key), key

    private, largest = max(map(most_private, classes.nodes))
    levels, lowest = max(map(deepest, classes.nodes))
    names = sorted(classes.private_names(largest))
    return [
        Figure("private names of the largest class", private, [largest, *names]),
        Figure("levels of inheritance", levels, [lowest]),
    ]


def figures_of_moves(root: Path = ROOT) -> tuple[bool, list[Figure]]:
    """Whether the compiled core was at work, and what following a weight tells."""
    command = [sys.executable, str(Path(__file__).with_name("moves.py")), str(root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    return result["core"], [
        Figure(f"{what} of {said}", result[operation][what])
        for operation, said in OPERATIONS.items()
        for what in ("calls", "files", "moves")
    ]


def table(figures: Sequence[Figure], *, places: bool = False) -> str:
    """One line a figure: its name, its value, its limit, and its value before; then the places, if asked for."""
    lines = [f"{'figure':<48}{'now':>8}{'limit':>8}{'4576c40':>9}"]
    for figure in figures:
        limit, before = LIMITS.get(figure.name, ""), BEFORE.get(figure.name, "")
        lines.append(f"{figure.name:<48}{figure.value:>8g}{limit:>8}{before:>9}")
        lines += [f"    {place}" for place in figure.places if places]
    return "\n".join(lines)


def as_json(figures: Sequence[Figure]) -> dict[str, Any]:
    return {
        figure.name: {"value": figure.value, "places": [str(place) for place in figure.places]} for figure in figures
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m house.measure", description="Measure how the house is built.")
    parser.add_argument("root", type=Path, nargs="?", default=ROOT, help="a checkout of the project")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, with the places they count")
    parser.add_argument("--list", action="store_true", help="print the places that each figure counts")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    core, moves = figures_of_moves(root)
    figures = [*figures_of_sources(root), *moves]
    if arguments.json:
        print(json.dumps({"core": core, "figures": as_json(figures)}, indent=1))
        return
    print(table(figures, places=arguments.list))
    if not core:
        print("without the compiled core, whose limits for moves do not hold here")


if __name__ == "__main__":
    main()
