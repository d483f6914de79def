"""The classes of the package with their inheritance flattened."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from house.sources import Sources, is_private, names_bound, root_name


class ClassKey(NamedTuple):
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Classes:
    """Every class that the package defines; bases from elsewhere do not count."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    @cached_property
    def nodes(self) -> dict[ClassKey, ast.ClassDef]:
        return {
            ClassKey(module, node.name): node
            for module, tree in self.sources.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }

    def levels(self, key: ClassKey) -> int:
        """The class itself and the longest chain of its bases."""
        return 1 + max(map(self.levels, self._bases(key)), default=0)

    def private_names(self, key: ClassKey) -> set[str]:
        """Private methods, properties and class attributes, own and inherited, each name once."""
        own = set(filter(is_private, names_bound(self.nodes[key].body, without_values=False)))
        return own.union(*map(self.private_names, self._bases(key)))

    def _bases(self, key: ClassKey) -> Iterator[ClassKey]:
        candidates = (self._resolved(key.module, node) for node in self.nodes[key].bases)
        return (base for base in candidates if base is not None and base in self.nodes)

    def _resolved(self, module: str, node: ast.expr) -> ClassKey | None:
        """The class that a base means: defined in the module, imported by name, or ``imported_module.Name``."""
        node = node.value if isinstance(node, ast.Subscript) else node
        imported = {entry.alias: entry for entry in self.sources.imports[module]}.get(root_name(node))
        if isinstance(node, ast.Attribute):
            return ClassKey(imported.source, node.attr) if imported is not None and imported.source else None
        if not isinstance(node, ast.Name):
            return None
        if imported is None or imported.source is None or imported.name is None:
            return ClassKey(module, node.id)
        return ClassKey(imported.source, imported.name)
