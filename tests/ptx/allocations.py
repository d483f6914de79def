"""Which memory of the process belongs to tensors, and which of it torch gave out uninitialised."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import weakref
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .memory import JUNK, Unwritten

_fresh: dict[int, tuple[StorageWeakRef, Unwritten]] = {}  # by the storage's address


def _tensors(types: frozenset[type]) -> list[torch.Tensor]:
    return [each for each in gc.get_objects() if type(each) in types]


def _tensor_types() -> frozenset[type]:
    found, new = set(), [torch.Tensor]
    while new:
        kind = new.pop()
        found.add(kind)
        new += [each for each in type.__subclasses__(kind) if each not in found]
    return frozenset(found)


class LivingTensors:
    """All tensors of the process. The garbage collector knows them; what it knew before is set aside while this is in
    use, so that asking is quick."""

    def __enter__(self) -> LivingTensors:
        self._before = [weakref.ref(tensor) for tensor in _tensors(_tensor_types())]
        gc.freeze()
        return self

    def __exit__(self, *error: object) -> None:
        gc.unfreeze()

    def ranges(self) -> list[tuple[int, int]]:
        """Where the storages of all CPU tensors begin and end."""
        before = [tensor for reference in self._before if (tensor := reference()) is not None]
        found = {}
        for each in [*before, *_tensors(_tensor_types())]:
            storage = _storage(each) if each.device.type == "cpu" and each.layout == torch.strided else None
            if storage is not None and storage.nbytes():
                found[storage.data_ptr()] = storage.data_ptr() + storage.nbytes()
        return list(found.items())


def _storage(tensor: torch.Tensor):
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # of a tensor that has none: fake, functional
        return None


def unwritten() -> list[Unwritten]:
    """The storages that began as junk and live."""
    for address, (reference, _) in list(_fresh.items()):
        if reference.expired():
            del _fresh[address]
    return [shadow for _, shadow in _fresh.values()]


@contextlib.contextmanager
def junk_in_empty_tensors(largest: int = 1 << 28) -> Iterator[None]:
    """``torch.empty`` and its like give tensors full of junk, which the emulator remembers; those of more than
    ``largest`` bytes stay as they are."""
    names = [(torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")]
    with contextlib.ExitStack() as stack:
        for owner, name in names:
            stack.enter_context(mock.patch.object(owner, name, _with_junk(getattr(owner, name), largest)))
        yield


def _with_junk(make, largest: int):
    def empty(*arguments, **options):
        made = make(*arguments, **options)
        if type(made) is torch.Tensor and made.device.type == "cpu" and made.layout == torch.strided:
            storage = _storage(made)
            if storage is not None and 0 < storage.nbytes() <= largest:
                _remember(storage)
        return made

    return empty


def _remember(storage) -> None:
    start, size = storage.data_ptr(), storage.nbytes()
    ctypes.memset(start, JUNK, size)
    _fresh[start] = StorageWeakRef(storage), Unwritten(start, np.ones(size, bool))
