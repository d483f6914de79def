"""What long runs of this folder keep: outcomes that a later run need not find again, and the tables made of them."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from support.paths import ROOT

PAGE = ROOT / "docs" / "gpu_emulator.md"
PACKAGE, TESTS = "diffq_fast", "tests"
EMULATOR = "tests/ptx/*.py"
# What imports every operator, or is imported by every one.
DISPATCHERS = ("diffq_fast/_ops.py", "diffq_fast/**/__init__.py", "diffq_fast/**/registration.py")


def fingerprint(check: Callable, operators: Iterable[str], *others: str) -> str:
    """Of what decides an outcome: the modules of ``operators`` (launchers, and modules of the reference) with all that
    they import, the functions of the tests that ``check`` calls, and the files of patterns. Comments on lines of their
    own do not count."""
    roots = [
        ROOT / PACKAGE / place / f"{operator}.py"
        for operator in operators
        for place in ("backends/triton", "reference", "backends/default")
    ]
    files = {path for root in roots if root.exists() for path in with_imports(root)}
    files |= {path for pattern in others for path in ROOT.glob(pattern)}
    texts = [*map(_code_of, sorted(files)), *code_reached(check)]
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def code_reached(check: Callable) -> list[str]:
    """The code of a function, of those of ``tests`` that it calls, and so on, and the constants that they name."""
    found: dict[Any, str] = {}
    todo = [check]
    while todo:
        function: Any = todo.pop()
        if isinstance(function, type):
            todo += [each for each in vars(function).values() if isinstance(each, FunctionType)]
        if isinstance(function, FunctionType) and function not in found:
            values = list(_named_by(function))
            constants = sorted({repr(each) for each in values if isinstance(each, (int, str, tuple, list, dict))})
            found[function] = "".join([_stripped(inspect.getsource(function)), *constants])
            todo += [each for each in values if getattr(each, "__module__", "").startswith(("emulated.", "support."))]
    return sorted(found.values())


def _named_by(function: FunctionType) -> Iterator[Any]:
    """Globals, and what is named of modules among them."""
    names = list(_names(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        if inspect.ismodule(value):
            yield from (getattr(value, other) for other in names if hasattr(value, other))
        else:
            yield value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@functools.cache
def _code_of(path: Path) -> str:
    return _stripped(path.read_text())


def _stripped(code: str) -> str:
    """Without lines that are empty or a comment."""
    return "\n".join(line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#"))


@functools.cache
def with_imports(root: Path) -> frozenset[Path]:
    """A module and those of this repository that it imports, and so on; ``DISPATCHERS`` are left out."""
    left_out = {path for pattern in DISPATCHERS for path in ROOT.glob(pattern)} - {root}
    found, todo = set(), [root]
    while todo:
        path = todo.pop()
        if path not in found and path not in left_out:
            found.add(path)
            todo += _imported(path)
    return frozenset(found)


def _imported(path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            package = path.parents[node.level - 1] if node.level else None
            for base in [package] if package else [ROOT, ROOT / TESTS]:
                module = base.joinpath(*(node.module or "").split("."))
                names = [module / f"{name.name}.py" for name in node.names]
                yield from (each for each in [module.with_suffix(".py"), *names] if each.is_file())


class Outcomes:
    """By keys of several words and by the fingerprint of what decides them, in a file of ``build``: one line each."""

    def __init__(self, name: str) -> None:
        self.path = ROOT / "build" / name
        self.path.parent.mkdir(exist_ok=True)
        rows = map(json.loads, self.path.read_text().splitlines() if self.path.exists() else ())
        self.known: dict[tuple, str] = {(row["sources"], *row["key"]): row["outcome"] for row in rows}

    def get(self, sources: str, key: tuple) -> str | None:
        return self.known.get((sources, *key))

    def add(self, sources: str, key: tuple, outcome: str) -> None:
        self.known[(sources, *key)] = outcome
        with self.path.open("a") as file:
            file.write(json.dumps({"sources": sources, "key": key, "outcome": outcome}) + "\n")


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_table(page: str, name: str, new: str) -> str:
    """The page with this table in place of the one between the marks of ``name``."""
    begin, end = f"<!-- table: {name} -->\n", f"<!-- end of table: {name} -->\n"
    head, rest = page.split(begin)
    return head + begin + new + end + rest.split(end)[1]
