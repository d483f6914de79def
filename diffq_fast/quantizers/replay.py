"""Finding, inside a backward, the forward that an activation checkpoint is computing again.

Autograd numbers its nodes in the order of their creation, per thread. A forward is remembered as the span of numbers
that it used; the node being evaluated when a module is called inside a backward has a number in the span of its own
forward. See ``docs/training.md``. And telling which threads are inside of a forward, or of a recomputation.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes

REMEMBERED_FORWARDS = 1024

# Given indices of quantised parameters, makes their tensors again exactly as the forward saw them.
Maker = Callable[[Sequence[int]], list[Tensor]]


def inside_backward() -> bool:
    """Whether this thread is running a backward."""
    return torch._C._current_graph_task_id() != -1


# The number that autograd gives to the next node of this thread.
next_sequence_number: Callable[[], int] = torch.autograd._get_sequence_nr


def never_compiled_by_itself(function: Callable) -> Callable:
    """Mark a function as not to be compiled as a frame of its own, nor what it calls: outside a graph it must do its
    work in Python, with what it remembers. Where Dynamo inlines it into a graph, the mark has no effect."""
    return _skipped(function, "SKIP")


def passed_by_when_compiling(function: Callable) -> Callable:
    """Mark a function as not to be compiled as a frame of its own; what it calls may be."""
    return _skipped(function, "DEFAULT")


def _skipped(function: Callable, callees: str) -> Callable:
    eval_frame: Any = torch._C._dynamo.eval_frame
    if hasattr(eval_frame, "set_code_exec_strategy"):
        action = eval_frame._FrameAction
        strategy = eval_frame._FrameExecStrategy(action.SKIP, getattr(action, callees))
        eval_frame.set_code_exec_strategy(function.__code__, strategy)
    else:
        eval_frame.skip_code(function.__code__)
    return function


@dataclass(eq=False)
class Forward:
    """One forward of the model: how to make its tensors again, and which autograd numbers it used.

    ``before`` is the number of the last node made before it, for a forward without gradients: when the whole model
    stands in a reentrant checkpoint, that node is the checkpoint's. ``generators`` tells the state of the random
    generators that it drew from. ``thread``: whose numbers these are.
    """

    make: Maker
    generators: Hashable = None
    start: int = 0
    stop: int = 0
    before: int | None = None
    thread: int = 0


class Replay(NamedTuple):
    """A part of a forward computed again: its nodes have numbers of the thread and the backward that did it."""

    forward: Forward
    start: int
    stop: int
    thread: int
    task: int


class Forwards:
    """The latest forwards of a model, newest last; a bounded number, and none is written to files or copies."""

    def __init__(self, limit: int = REMEMBERED_FORWARDS) -> None:
        self._kept: deque[Forward] = deque(maxlen=limit)
        self._replays: list[Replay] = []
        self._threads: set[int] = set()
        self._served: tuple[int, int] | None = None
        self._forgotten_below = 0

    def ended(self, forward: Forward, start: int) -> None:
        """A call of the whole model that began at number ``start`` has ended: remember it."""
        if inside_backward():
            self.remember_replay(forward, start)
        else:
            forward.start, forward.stop, forward.thread = start, next_sequence_number(), threading.get_ident()
            self.remember(forward)

    def begin(self, maker: Maker, generators: Hashable, indices: Sequence[int]) -> tuple[Forward, int, list[Tensor]]:
        """A call of the whole model begins: the forward that it is, its first number, and the tensors that it sees.

        Inside a backward it may be one that is computed again. ``generators`` tell where the random generators stood.
        """
        forward = Forward(maker, generators)
        if inside_backward():
            forward = self.of_root_call(forward)
        start = next_sequence_number()
        tensors = make_unseen(forward.make, indices)
        if not torch.is_grad_enabled():
            forward.before = start - 1
        return forward, start, tensors

    def remember(self, forward: Forward) -> None:
        """Keep a forward that has ended; the oldest one may be forgotten for it."""
        if len(self._kept) == self._kept.maxlen:
            self._forgotten_below = self._kept[0].stop
        self._threads.add(forward.thread)
        self._kept.append(forward)

    def remember_replay(self, forward: Forward, start: int, stop: int | None = None) -> None:
        """Keep a part that has been computed again, from number ``start`` on, until the running backward ends.

        ``stop``: the number behind its last one; None: what comes next."""
        task = torch._C._current_graph_task_id()
        if all(replay.task != task for replay in self._replays):
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._forget_replays, task))
        stop = next_sequence_number() if stop is None else stop
        self._replays.append(Replay(forward, start, stop, threading.get_ident(), task))

    def replay_begins(self, forward: Forward) -> None:
        """Inside a backward: a part of ``forward`` is computed again, all nodes that this thread makes from now on.

        Without gradients it is the first run of a reentrant checkpoint within the recomputation, whose node is the one
        made last.
        """
        here = forward, threading.get_ident(), torch._C._current_graph_task_id()
        if not any((each.forward, each.thread, each.task) == here for each in self._replays[-1:]):
            start = next_sequence_number() - (not torch.is_grad_enabled())
            self.remember_replay(forward, start, sys.maxsize)

    def _forget_replays(self, task: int) -> None:
        self._replays = [replay for replay in self._replays if replay.task != task]

    @never_compiled_by_itself
    def current(self) -> Forward | None:
        """Inside a backward: the forward whose node is being evaluated. None for a graph that no forward of the model
        made, such as a submodule called directly.

        Numbers count per thread, and a backward may run on another thread than its forward. A node of a recomputation
        is only met by the backward within it (a reentrant checkpoint's), on the thread that made it.

        Raises:
            RuntimeError: when that forward has been forgotten.
        """
        node = torch._C._current_autograd_node()
        if node is None:
            return None
        number, task, thread = node._sequence_nr(), torch._C._current_graph_task_id(), threading.get_ident()
        for replay in reversed(self._replays):
            if replay.thread == thread and replay.task != task and replay.start <= number < replay.stop:
                return replay.forward
        found = self._newest(lambda forward: forward.start <= number < forward.stop)
        found = found or self._newest(lambda forward: forward.before == number)
        if found is not None:
            return found
        if number < self._forgotten_below:
            raise RuntimeError(
                f"an activation checkpoint needs the noise of a forward that is more than {self._kept.maxlen} "
                "forwards old; call backward sooner"
            )
        return None

    def _newest(self, fits: Callable[[Forward], bool]) -> Forward | None:
        """The latest forward that fits. Where several threads had forwards, one of this thread, which runs the
        backward, goes before those of others, and one of a thread that lives before those of threads that have ended.

        Raises:
            RuntimeError: forwards of several other threads fit.
        """
        latest = next(filter(fits, reversed(self._kept)), None)
        here = threading.get_ident()
        if latest is None or latest.thread == here or len(self._threads) == 1:
            return latest
        fitting: dict[int, Forward] = {}
        for forward in filter(fits, reversed(self._kept)):
            fitting.setdefault(forward.thread, forward)
        if here in fitting:
            return fitting[here]
        living = fitting.keys() & live_threads()
        if len(living) > 1:
            raise RuntimeError(
                "an activation checkpoint is computed again, and forwards of several threads may be the one that it "
                "belongs to; run each backward on the thread of its forward"
            )
        return fitting[living.pop()] if living else latest

    def of_root_call(self, fresh: Forward) -> Forward:
        """Inside a backward: the forward that a call of the whole model computes again. ``fresh`` has drawn anew.

        Where the checkpoint has put the generators back, ``fresh`` has drawn what the forward drew. Where it has not
        (``preserve_rng_state=False``), the node that is evaluated tells the forward, if the region holds only one.

        Raises:
            RuntimeError: when it holds more.
        """
        if fresh.generators is None or any(forward.generators == fresh.generators for forward in self._kept):
            return fresh
        found = self.current()
        if found is None:
            warnings.warn(
                "the whole model was called inside a backward, and its forward is not known: its noise is drawn anew, "
                "so a checkpoint around it gives wrong gradients. Use preserve_rng_state=True",
                stacklevel=6,
            )
            return fresh
        if self._serves_again():
            raise RuntimeError(
                "a checkpoint with preserve_rng_state=False holds more than one call of the whole model, and which "
                "noise belongs to which call cannot be told; use preserve_rng_state=True"
            )
        return found

    def _serves_again(self) -> bool:
        """Whether the node that is evaluated has told a forward before."""
        served = (torch._C._current_graph_task_id(), torch._C._current_autograd_node()._sequence_nr())
        before, self._served = self._served, served
        return served == before

    def alike(self, fresh: Forward) -> Forward:
        """Inside a backward: the forward itself that a call of the whole model computes again, and what it saw.

        As :meth:`of_root_call`, but where ``fresh`` has drawn what a forward drew, that one is given: it also knows
        what has changed since. Where several began with the same generators, the node that is evaluated tells which.

        Raises:
            RuntimeError: the region holds several calls, all from the same generators.
        """
        candidates = [forward for forward in self._kept if forward.generators == fresh.generators]
        if not candidates or fresh.generators is None:
            return self.of_root_call(fresh)
        found = self.current() if len(candidates) > 1 else None
        if found is None or found not in candidates:
            return candidates[-1]
        if self._serves_again():
            raise RuntimeError(
                "a checkpoint holds more than one call of the whole model, and which ranges of activations belong to "
                "which call cannot be told, since nothing random was drawn between them; give each call a checkpoint "
                "of its own"
            )
        return found

    def __getstate__(self) -> dict:
        return {"limit": self._kept.maxlen}

    def __setstate__(self, state: dict) -> None:
        self._kept = deque(maxlen=state["limit"])
        self._replays, self._served, self._forgotten_below = [], None, 0
        self._threads = set()


class Nesting:
    """How deep each thread is inside the forward of one module.

    A guard sees every exception that ends a call. Where there is none (a compiled call), a depth can be left over from
    a call that has died; it is told from a call of the module inside itself by looking at the call stack.
    """

    def __init__(self) -> None:
        self.depths: dict[int, int] = {}
        self.lock = threading.RLock()

    def enter(self, module: nn.Module) -> bool:
        """Count one call. True when no live call, in any thread, is inside the module already."""
        thread = threading.get_ident()
        with self.lock:
            if self.depths.get(thread) and _live_calls(module) < 2:
                del self.depths[thread]
            alone = not self._drop_dead_threads()
            self.depths[thread] = self.depths.get(thread, 0) + 1
            return alone

    def leave(self) -> bool:
        """Count one return. True when it was the last."""
        depth = self.depth()
        return bool(depth) and self.back_to(depth - 1)

    def depth(self) -> int:
        """Calls that this thread is inside of."""
        return self.depths.get(threading.get_ident(), 0)

    def back_to(self, depth: int) -> bool:
        """This thread is inside of ``depth`` calls only. True when it has left, and no other is inside."""
        thread = threading.get_ident()
        with self.lock:
            if self.depths.get(thread, 0) <= depth:
                return False
            if depth:
                self.depths[thread] = depth
            else:
                del self.depths[thread]
            return not self.depths

    def is_empty(self) -> bool:
        """Whether no thread is inside."""
        return not self.depths

    def release(self) -> None:
        """Let go of the lock, should an exception have kept a ``with`` from doing so."""
        with suppress(RuntimeError):
            while True:
                self.lock.release()

    def others(self) -> bool:
        """Whether other threads are inside."""
        with self.lock:
            self._drop_dead_threads()
            return bool(self.depths.keys() - {threading.get_ident()})

    def _drop_dead_threads(self) -> bool:
        """True when calls of live threads remain."""
        if self.depths:
            alive = live_threads()
            self.depths = {ident: depth for ident, depth in self.depths.items() if ident in alive}
        return bool(self.depths)

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.depths = {}
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


class ReplaysByThread:
    """The recomputations that each thread is inside of, the innermost last: the forward, its first number and the
    indices of its weights; None for a call that needed nothing."""

    def __init__(self) -> None:
        self.stacks: dict[int, list[tuple[Forward, int, list[int]] | None]] = {}

    def begin(self, replay: tuple[Forward, int, list[int]] | None) -> None:
        """This thread enters one."""
        self.stacks.setdefault(threading.get_ident(), []).append(replay)

    def last(self) -> tuple[Forward, int, list[int]] | None:
        """The innermost one of this thread."""
        return self.stacks[threading.get_ident()][-1]

    def end(self) -> None:
        """This thread leaves the innermost one."""
        stack = self.stacks[threading.get_ident()]
        stack.pop()
        if not stack:
            self.forget()

    def depth(self) -> int:
        """How many this thread is inside of."""
        return len(self.stacks.get(threading.get_ident(), ()))

    def forget(self) -> None:
        """This thread is inside of none."""
        self.stacks.pop(threading.get_ident(), None)

    def elsewhere(self) -> bool:
        """Whether other threads are inside of one that put tensors."""
        here = threading.get_ident()
        return any(any(stack) for thread, stack in list(self.stacks.items()) if thread != here)

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.stacks = {}


@contextmanager
def unseen_by_checkpoints() -> Iterator[None]:
    """What operators run here keep for their backward is not counted or dropped by a checkpoint around them, and a
    selective checkpoint does not see them when it computes again."""
    with saved_tensors_hooks(_same, _same), _disable_current_modes() if inside_backward() else nullcontext():
        yield


def make_unseen(maker: Maker, indices: Sequence[int]) -> list[Tensor]:
    """What ``maker`` makes, with nothing of it seen by a checkpoint."""
    if torch._C._current_graph_task_id() == -1 and _hooks_of_saved_tensors() is None:
        return maker(indices)  # outside of every checkpoint
    with unseen_by_checkpoints():
        return maker(indices)


def _no_hooks_known() -> Any:
    return True


# The hooks that a checkpoint, or whoever else watches saved tensors, has set; None: there are none.
_hooks_of_saved_tensors: Callable[[], Any] = (
    partial(torch._C._autograd._top_saved_tensors_default_hooks, False)
    if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
    else _no_hooks_known
)


def _same(tensor: Tensor) -> Tensor:
    return tensor
