"""Write states that the original diffq reads, although neither package imports the other.

diffq pickles the quantizer's class by its name, ``diffq.diffq.DiffQuantizer``. An ordinary pickler would
import that name first; this one just writes it.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import torch

from ..files.atomic_file import atomic_file
from .unpickler import legacy_name


class ClassName:
    """A class that is only a dotted name."""

    def __init__(self, name: str) -> None:
        self.name = name


class NamePickler(pickle._Pickler):
    """A pickler that writes a :class:`ClassName` as the class of that name."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)


def _save_class_name(self: Any, klass: ClassName) -> None:
    module, _, name = klass.name.rpartition(".")
    if self.proto >= 4:
        self.save(module)
        self.save(name)
        self.write(pickle.STACK_GLOBAL)
    else:
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
    self.memoize(klass)


NamePickler.dispatch[ClassName] = _save_class_name


def _with_class_name(state: Mapping[str, Any], klass: str | None) -> dict[str, Any]:
    if "meta" not in state:
        return dict(state)
    name = legacy_name(state["meta"]["klass"]) if klass is None else klass
    return {**state, "meta": {**state["meta"], "klass": ClassName(name)}}


def save_legacy_state(
    state: Mapping[str, Any], path: str | os.PathLike[str] | BinaryIO, klass: str | None = None
) -> None:
    """``torch.save(state, path)``, with the quantizer's class as a dotted name.

    Args:
        state: from :func:`diffq_fast.legacy.state.build_state`; ``meta["klass"]`` is a class or a dotted name.
        path: a path, replaced whole or not at all (see :func:`atomic_file`), or a binary file.
        klass: the dotted name to write instead of the one in ``meta``.

    Raises:
        OSError: the file cannot be written.
    """
    named = _with_class_name(state, klass)
    if isinstance(path, str | os.PathLike):
        with atomic_file(path) as file:
            _save(named, file)
    else:
        _save(named, path)


def _save(state: Mapping[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file, pickle_module=SimpleNamespace(__name__="pickle", Pickler=NamePickler))
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch's own error says nothing of a full disk
            raise error.__context__ from None
        raise


def pickled_size(state: Mapping[str, Any], klass: str | None = None) -> int:
    """Bytes of ``pickle.dumps(state)``, with the class named as in :func:`save_legacy_state`."""
    buffer = io.BytesIO()
    NamePickler(buffer, pickle.DEFAULT_PROTOCOL).dump(_with_class_name(state, klass))
    return buffer.getbuffer().nbytes
