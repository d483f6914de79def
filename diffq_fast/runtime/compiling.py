"""What ``torch.compile`` does with packed weights where it leaves a model to Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def never_compiled_alone(function: Function) -> Function:
    """Traced into the graphs of those who call it, and no graph of its own, nor what it calls.

    Behind a break of a graph the compiler begins anew at each function of Python. One that takes a weight would be
    compiled once for every form of a weight, up to the compiler's limit, for the sake of one operator.
    """
    frames: Any = getattr(torch._C._dynamo, "eval_frame", None)
    if hasattr(frames, "set_code_exec_strategy"):  # torch 2.7
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function
