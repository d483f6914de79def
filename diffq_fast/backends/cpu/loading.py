"""Finds the compiled core and the instruction set that it uses, or the reason why there is no core."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch


def _load() -> tuple[Any, str]:
    if os.environ.get("DIFFQ_FAST_DISABLE_CORE", "0") not in ("", "0"):
        return None, "DIFFQ_FAST_DISABLE_CORE is set"
    try:
        from ... import _core  # type: ignore[attr-defined]  # compiled
    except ImportError as error:
        return None, f"the compiled module could not be imported: {error}"
    _choose_instruction_set(_core)
    parallel = find_team()
    _core.use_team(parallel)
    threads = "torch's OpenMP threads" if parallel else "threads of its own"
    return _core, f"the compiled module is loaded and uses {_core.instruction_set()} and {threads}"


def _choose_instruction_set(core: Any) -> None:
    """The best one that this machine runs, or the one that ``DIFFQ_FAST_ISA`` names.

    Raises:
        ValueError: this machine or this build does not have what the variable names: whoever sets it wants to measure
            or to test that one, so another would mislead.
    """
    wanted = os.environ.get("DIFFQ_FAST_ISA", "")
    if wanted and not core.use_instruction_set(wanted):
        raise ValueError(
            f"diffq_fast: DIFFQ_FAST_ISA: expected one of {', '.join(core.instruction_sets())}, which this machine "
            f"runs, got {wanted!r}; unset it to use the best of them"
        )


def find_team() -> int:
    """The address of ``GOMP_parallel`` in the OpenMP runtime that torch itself works with, or 0.

    GNU's, LLVM's and Intel's runtimes have it on Linux. Its threads spin for milliseconds behind torch's operators:
    the core's own threads would have to share the cores with them.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"  # not there on other systems
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel  # searches what the library depends on, too
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(parallel, ctypes.c_void_p).value or 0


core, _reason = _load()


def status() -> tuple[bool, str]:
    """Whether the compiled core answers for CPU tensors, and with which instructions, or why not."""
    return core is not None, _reason
