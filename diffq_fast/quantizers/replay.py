"""Finding, inside a backward, the forward that an activation checkpoint is computing again.

Autograd numbers its nodes in the order of their creation, per thread. A forward is remembered as the span of numbers
that it used; the node being evaluated when a module is called inside a backward has a number in the span of its own
forward. See ``docs/training.md``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes

REMEMBERED_FORWARDS = 1024

# Given indices of quantised parameters, makes their tensors again exactly as the forward saw them.
Maker = Callable[[Sequence[int]], list[Tensor]]


def inside_backward() -> bool:
    """Whether this thread is running a backward."""
    return torch._C._current_graph_task_id() != -1


def next_sequence_number() -> int:
    """The number that autograd gives to the next node of this thread."""
    return torch.autograd._get_sequence_nr()


def never_compiled_by_itself(function: Callable) -> Callable:
    """Mark a function as not to be compiled as a frame of its own: outside a graph it must do its work in Python, with
    what it remembers. Where Dynamo inlines it into a graph, the mark has no effect."""
    eval_frame: Any = torch._C._dynamo.eval_frame
    if hasattr(eval_frame, "set_code_exec_strategy"):
        skip = eval_frame._FrameAction.SKIP
        eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))
    else:
        eval_frame.skip_code(function.__code__)
    return function


@dataclass(eq=False)
class Forward:
    """One forward of the model: how to make its tensors again, and the spans of autograd numbers it covers.

    ``before`` is the number of the last node made before it, for a forward without gradients: when the whole model
    stands in a reentrant checkpoint, that node is the checkpoint's.
    """

    make: Maker
    spans: list[tuple[int, int]] = field(default_factory=list)
    before: int | None = None

    def covers(self, number: int) -> bool:
        """Whether a node with this number was made in this forward or in a recomputation of a part of it."""
        return any(start <= number < stop for start, stop in self.spans)


class Forwards:
    """The latest forwards of a model, newest last; a bounded number, and none is written to files or copies."""

    def __init__(self, limit: int = REMEMBERED_FORWARDS) -> None:
        self._kept: deque[Forward] = deque(maxlen=limit)
        self._forgotten_below = 0

    def remember(self, forward: Forward) -> None:
        """Keep a forward that has ended; the oldest one may be forgotten for it."""
        if len(self._kept) == self._kept.maxlen:
            self._forgotten_below = max(stop for _, stop in self._kept[0].spans)
        self._kept.append(forward)

    @never_compiled_by_itself
    def current(self) -> Forward | None:
        """Inside a backward: the forward whose node is being evaluated. None for a graph that no forward of the model
        made, such as a submodule called directly.

        Raises:
            RuntimeError: when that forward has been forgotten.
        """
        node = torch._C._current_autograd_node()
        if node is None:
            return None
        number = node._sequence_nr()
        candidates = [forward for forward in self._kept if forward.covers(number)]
        candidates = candidates or [forward for forward in self._kept if forward.before == number]
        if candidates:
            return candidates[-1]
        if number < self._forgotten_below:
            raise RuntimeError(
                f"an activation checkpoint needs the noise of a forward that is more than {self._kept.maxlen} "
                "forwards old; call backward sooner"
            )
        return None

    def __getstate__(self) -> dict:
        return {"limit": self._kept.maxlen}

    def __setstate__(self, state: dict) -> None:
        self._kept = deque(maxlen=state["limit"])
        self._forgotten_below = 0


@contextmanager
def unseen_by_checkpoints() -> Iterator[None]:
    """What operators run here keep for their backward is not counted or dropped by a checkpoint around them, and a
    selective checkpoint does not see them when it computes again."""
    with saved_tensors_hooks(_same, _same), _disable_current_modes() if inside_backward() else nullcontext():
        yield


def _same(tensor: Tensor) -> Tensor:
    return tensor
