"""Which module takes private names of another one.

A *private name taken* is a place that reads or writes a name with one leading underscore which another module of the
package defines and its own module does not: ``thing._name``, ``from .module import _name``,
``getattr(thing, "_name")``. A class's own names are ``self._name``, ``cls._name`` and ``super()._name``, inherited or
not. The private names of foreign modules are their business. Modules whose names begin with an underscore belong to the
package, not to a file.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from house.sources import Place, Sources, is_private, names_bound, root_name

ASKING = ("getattr", "hasattr", "setattr", "delattr")


def private_names_taken(sources: Sources) -> list[Place]:
    homes = private_names(sources)
    return [place for module in sources.trees for place in _taken_by(module, sources, homes)]


def private_names(sources: Sources) -> dict[str, set[str]]:
    """By private name, the modules that define it: as a function, class, variable, or attribute of ``self``."""
    homes: dict[str, set[str]] = defaultdict(set)
    for module, tree in sources.trees.items():
        for name in filter(is_private, _names_defined(tree)):
            homes[name].add(module)
    return dict(homes)


def _names_defined(tree: ast.Module) -> Iterator[str]:
    yield from names_bound(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from names_bound(node.body)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
            yield node.attr


def _is_own(node: ast.expr) -> bool:
    """Whether an expression is ``self``, ``cls`` or ``super()``."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _taken_by(module: str, sources: Sources, homes: dict[str, set[str]]) -> Iterator[Place]:
    foreign = {entry.alias for entry in sources.imports[module] if entry.source is None}
    modules = {entry.alias for entry in sources.imports[module] if entry.source is not None and entry.name is None}
    for entry in sources.imports[module]:
        if entry.source is not None and entry.name in homes:
            yield Place(module, entry.line, f"import {entry.name}")
    for node in ast.walk(sources.trees[module]):
        asked = _asked_for(node)
        if asked is None or root_name(asked[0]) in foreign or _is_own(asked[0]):
            continue
        owner, name = asked
        if name in homes and (root_name(owner) in modules or module not in homes[name]):
            yield Place(module, owner.lineno, ast.unparse(node))


def _asked_for(node: ast.AST) -> tuple[ast.expr, str] | None:
    """The owner and the name of ``owner._name`` and ``getattr(owner, "_name")``; None for anything else."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if isinstance(node, ast.Call) and root_name(node.func) in ASKING and len(node.args) > 1:
        name = node.args[1]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            return node.args[0], name.value
    return None
