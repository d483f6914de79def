"""Telling a call of a model from a call of the model inside itself, on every thread."""

from __future__ import annotations

import sys
import threading
from types import FrameType

from torch import nn


class Nesting:
    """How deep each thread is inside the forward of one module.

    KeyboardInterrupt skips a module's forward hooks, so a depth can be left over from a call that has died. It is told
    from a call of the module inside itself by looking at the call stack.
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
        thread = threading.get_ident()
        with self.lock:
            depth = self._depths.pop(thread, 0)
            if depth > 1:
                self._depths[thread] = depth - 1
            return not self._depths

    def _drop_dead_threads(self) -> bool:
        """True when calls of live threads remain."""
        if self._depths:
            alive = {thread.ident for thread in threading.enumerate()}
            self._depths = {ident: depth for ident, depth in self._depths.items() if ident in alive}
        return bool(self._depths)

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self._depths = {}
        self.lock = threading.RLock()


def _live_calls(module: nn.Module) -> int:
    """Calls of ``module`` on this thread's stack, the one being entered included."""
    calls = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        calls += frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is module
        frame = frame.f_back
    return calls
