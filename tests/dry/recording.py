"""What is run, in its order: operators of PyTorch and launches of emulated kernels, to be counted or run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    def __init__(self, emulator: Any) -> None:
        super().__init__()
        self.emulator = emulator
        self.calls: list[Callable[[], None]] = []
        self.inside = False  # of an operator that launches kernels: it is run again as a whole

    def __enter__(self):
        self.launch = self.emulator.launch
        self.emulator.launch = self._record_launch
        return super().__enter__()

    def __exit__(self, *error: object):
        self.emulator.launch = self.launch
        return super().__exit__(*error)

    def _record_launch(self, *arguments: Any) -> None:
        self.launch(*arguments)
        if not self.inside:
            self.calls.append(lambda: self.launch(*arguments))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.inside = True
        try:
            results = function(*args, **kwargs)
        finally:
            self.inside = False
        if function.namespace != "aten" or "empty" not in function.__name__:
            self.calls.append(lambda: _write(results, function(*args, **kwargs)))
        return results

    def replay(self) -> None:
        for call in self.calls:
            call()


def _write(results: Any, again: Any) -> None:
    """Into the results of the first time, where they are no views."""
    for result, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
        if isinstance(result, torch.Tensor) and result.data_ptr() != new.data_ptr():
            result.copy_(new)
