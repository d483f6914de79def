"""Stand in for diffq: ``import diffq`` resolves to this package, and stored states name diffq's classes."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, BinaryIO

import torch

from .._version import __version__
from ..legacy.pickler import save_legacy_state
from ..quantizers.base import BaseQuantizer
from ..quantizers.registry import scheme_of, schemes
from .names import DIFFQ_MODULES, PACKAGE

STANDS_FOR = "0.2.4"


def install_as_diffq() -> None:
    """Make ``import diffq`` resolve to this package, for programs that import diffq by name.

    Call it before anything imports diffq. From then on ``diffq``, ``diffq.diffq`` and the other modules of diffq 0.2.4
    are those of this package; the classes are called ``diffq.diffq.DiffQuantizer`` and so on, in pickles too; and
    ``torch.load`` accepts these names under its safe default. Calling it again changes nothing.

    Raises:
        RuntimeError: another diffq is imported already. Nothing is changed then.
    """
    if isinstance(sys.modules.get("diffq"), _Alias):
        return
    for name in ("diffq", *(f"diffq.{submodule}" for submodule in DIFFQ_MODULES)):
        if name in sys.modules:
            where = getattr(sys.modules[name], "__file__", None) or "an unknown place"
            raise RuntimeError(
                f"install_as_diffq: {name} is imported already, from {where}; call install_as_diffq() before anything "
                "imports diffq, or uninstall it (pip uninstall diffq)"
            )
    alias = _Alias("diffq", "diffq_fast under the name of diffq.")
    for submodule in DIFFQ_MODULES:
        module = importlib.import_module(f"{PACKAGE}.{submodule}")
        setattr(alias, submodule, module)
        sys.modules[f"diffq.{submodule}"] = module
    named = {scheme.diffq_name: scheme.quantizer for scheme in schemes().values() if scheme.diffq_name}
    for name, klass in named.items():
        klass.__module__ = name.rpartition(".")[0]
        setattr(alias, klass.__name__, klass)
    alias.restore_quantized_state = alias.base.restore_quantized_state
    sys.modules["diffq"] = alias
    torch.serialization.add_safe_globals(list(named.values()))


class _Alias(ModuleType):
    """The module ``diffq``: diffq's names first, then all of this package's."""

    restore_quantized_state: Any

    def __init__(self, name: str, doc: str) -> None:
        super().__init__(name, doc)
        self.__version__ = f"{STANDS_FOR}+diffq_fast.{__version__}"
        self.__path__: list[str] = []  # a package without modules of its own
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(sys.modules[PACKAGE], name)


def save_legacy(
    quantizer: BaseQuantizer,
    path: str | os.PathLike[str] | BinaryIO,
    packed: bool = True,
    torch_pack: bool = False,
) -> None:
    """Save the quantised model as a file that diffq 0.2.4 reads (``torch.load``, then ``restore_quantized_state``).

    The quantizer's class is written under diffq's name, whether or not :func:`install_as_diffq` was called.

    Args:
        quantizer: of this package, attached to its model.
        path: a path, replaced whole or not at all, or a binary file.
        packed, torch_pack: the form of the state, see ``get_quantized_state``.

    Raises:
        ValueError: what diffq's states cannot hold, named; :func:`diffq_fast.save` holds it.
    """
    state = quantizer.get_quantized_state(packed=packed, torch_pack=torch_pack)
    save_legacy_state(state, path, scheme_of(type(quantizer)).stored_name)
