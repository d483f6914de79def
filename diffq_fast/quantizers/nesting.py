"""Telling a call of a model from a call of the model inside itself, on every thread."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from types import FrameType

from torch import nn


class Nesting:
    """How deep each thread is inside the forward of one module.

    A guard sees every exception that ends a call. Where there is none (a compiled call), a depth can be left over from
    a call that has died; it is told from a call of the module inside itself by looking at the call stack.
    """

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}
        self.lock = threading.RLock()

    def enter(self, module: nn.Module) -> bool:
        """Count one call. True when no live call, in any thread, is inside the module already."""
        thread = threading.get_ident()
        with self.lock:
            if self._depths.get(thread) and _live_calls(module) < 2:
                del self._depths[thread]
            alone = not self._drop_dead_threads()
            self._depths[thread] = self._depths.get(thread, 0) + 1
            return alone

    def leave(self) -> bool:
        """Count one return. True when it was the last."""
        depth = self.depth()
        return bool(depth) and self.back_to(depth - 1)

    def depth(self) -> int:
        """Calls that this thread is inside of."""
        return self._depths.get(threading.get_ident(), 0)

    def back_to(self, depth: int) -> bool:
        """This thread is inside of ``depth`` calls only. True when it has left, and no other is inside."""
        thread = threading.get_ident()
        with self.lock:
            if self._depths.get(thread, 0) <= depth:
                return False
            if depth:
                self._depths[thread] = depth
            else:
                del self._depths[thread]
            return not self._depths

    def is_empty(self) -> bool:
        """Whether no thread is inside."""
        return not self._depths

    def release(self) -> None:
        """Let go of the lock, should an exception have kept a ``with`` from doing so."""
        with suppress(RuntimeError):
            while True:
                self.lock.release()

    def others(self) -> bool:
        """Whether other threads are inside."""
        with self.lock:
            self._drop_dead_threads()
            return bool(self._depths.keys() - {threading.get_ident()})

    def _drop_dead_threads(self) -> bool:
        """True when calls of live threads remain."""
        if self._depths:
            alive = live_threads()
            self._depths = {ident: depth for ident, depth in self._depths.items() if ident in alive}
        return bool(self._depths)

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self._depths = {}
        self.lock = threading.RLock()


def live_threads() -> set[int | None]:
    """The threads that Python knows, and this one, which may be autograd's."""
    return {thread.ident for thread in threading.enumerate()} | {threading.get_ident()}


def _live_calls(module: nn.Module) -> int:
    """Calls of ``module`` on this thread's stack, the one being entered included."""
    calls = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        calls += frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is module
        frame = frame.f_back
    return calls
