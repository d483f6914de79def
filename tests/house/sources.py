"""The Python sources of the package in a checkout, and which module imports which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeGuard

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "diffq_fast"
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Imported(NamedTuple):
    """One name that a module imports.

    ``source`` is the module of the package that it comes from (None: a foreign one); ``name`` is None where the module
    itself is imported.
    """

    source: str | None
    name: str | None
    alias: str
    line: int


class Place(NamedTuple):
    """Where something was found, and what."""

    module: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.text}"


class Sources:
    """``texts`` and ``trees`` by the dotted name of the module, such as ``diffq_fast.quantizers.base``."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root, self.folder = root, root / PACKAGE
        self.paths = {_module_name(path, root): path for path in sorted(self.folder.rglob("*.py"))}
        if not self.paths:
            raise FileNotFoundError(f"Sources: expected the root of a checkout with {PACKAGE}/*.py in it, got {root}")
        self.texts = {module: path.read_text(encoding="utf-8") for module, path in self.paths.items()}
        self.trees = {module: ast.parse(text) for module, text in self.texts.items()}

    def functions(self) -> Iterator[tuple[str, Function]]:
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield module, node

    @cached_property
    def imports(self) -> dict[str, list[Imported]]:
        """What each module imports, inside of functions and for type checkers alone too."""
        return {module: list(self._imports_of(module)) for module in self.trees}

    def _imports_of(self, module: str) -> Iterator[Imported]:
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    source = alias.name if alias.name in self.paths else None
                    yield Imported(source, None, alias.asname or alias.name.partition(".")[0], node.lineno)
            elif isinstance(node, ast.ImportFrom):
                yield from (self._imported(module, node, alias) for alias in node.names)

    def _imported(self, module: str, node: ast.ImportFrom, alias: ast.alias) -> Imported:
        base = self._base(module, node)
        shown = alias.asname or alias.name
        if (whole := f"{base}.{alias.name}") in self.paths:
            return Imported(whole, None, shown, node.lineno)
        return Imported(base if base in self.paths else None, alias.name, shown, node.lineno)

    def _base(self, module: str, node: ast.ImportFrom) -> str:
        """The whole name of the module that ``from ..x import`` names inside of ``module``."""
        if node.level == 0:
            return node.module or ""
        parts = module.split(".")
        steps_up = node.level - (self.paths[module].name == "__init__.py")
        kept = parts[: len(parts) - steps_up]
        return ".".join([*kept, *([node.module] if node.module else [])])

    def circles(self) -> list[list[str]]:
        """Groups of modules of which each reaches each by imports.

        That importing ``a.b`` runs ``a/__init__.py`` first is no import of ``a.b``.
        """
        reached = {module: self._reached_from(module) for module in self.paths}
        groups = {tuple(end for end in reached if end in reached[start] and start in reached[end]) for start in reached}
        return [list(group) for group in sorted(groups) if group]

    def _reached_from(self, module: str) -> set[str]:
        reached: set[str] = set()
        ahead = [module]
        while ahead:
            for entry in self.imports[ahead.pop()]:
                if entry.source is not None and entry.source not in reached:
                    reached.add(entry.source)
                    ahead.append(entry.source)
        return reached


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_private(name: str) -> bool:
    """One leading underscore; ``__init__`` and ``_`` are not private."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


def names_bound(body: list[ast.stmt], *, without_values: bool = True) -> Iterator[str]:
    """The names that the statements of a module or a class define, those under ``if`` and ``try`` included.

    ``without_values``: also the names that are annotated and get no value, as the fields of instances are.
    """
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, (ast.If, ast.Try)):
            yield from names_bound([*statement.body, *statement.orelse], without_values=without_values)
        elif isinstance(statement, ast.Assign) or (
            isinstance(statement, ast.AnnAssign) and (without_values or statement.value is not None)
        ):
            yield from (node.id for node in ast.walk(statement) if _is_bound(node))


def _is_bound(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def root_name(node: ast.expr) -> str:
    """``a`` of ``a.b.c``; empty where the expression begins with something else than a name."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
