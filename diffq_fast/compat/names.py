"""diffq's module names inside of this package: ``diffq_fast.bitpack`` is ``diffq_fast.legacy.bitpack``, and so on.

Imports nothing but the import system, since every import of the package passes here.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __name__.partition(".")[0]

# The modules that diffq 0.2.4 has, and where each is here.
DIFFQ_MODULES = {
    "base": "compat.base",
    "bitpack": "legacy.bitpack",
    "diffq": "compat.diffq",
    "lsq": "compat.lsq",
    "torch_pack": "legacy.torch_pack",
    "ts_export": "compat.ts_export",
    "uniform": "compat.uniform",
}
# Modules of this package that programs know by an earlier name.
MOVED_MODULES = {"legacy_state": "legacy.state"}
HOMES = DIFFQ_MODULES | MOVED_MODULES


class DiffqNames(MetaPathFinder):
    """Finds the modules of :data:`HOMES` under their short names."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """A spec whose module is the one that is there already; None for all other names."""
        package, _, name = fullname.rpartition(".")
        if package != PACKAGE or name not in HOMES:
            return None
        return ModuleSpec(fullname, _SameModule(f"{PACKAGE}.{HOMES[name]}"))


class _SameModule(Loader):
    """Loads a module of another name, and leaves it as it is."""

    def __init__(self, home: str) -> None:
        self.home = home

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.home)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has put the short name's in its place


def install() -> None:
    """Have the short names found; a second call changes nothing."""
    if not any(isinstance(finder, DiffqNames) for finder in sys.meta_path):
        sys.meta_path.append(DiffqNames())
