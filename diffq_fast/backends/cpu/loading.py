"""Finds the compiled core, or the reason why there is none."""

from __future__ import annotations

import os
from typing import Any

INSTRUCTION_SETS = ("scalar",)


def _load() -> tuple[Any, str]:
    if os.environ.get("DIFFQ_FAST_DISABLE_CORE", "0") not in ("", "0"):
        return None, "DIFFQ_FAST_DISABLE_CORE is set"
    instruction_set = os.environ.get("DIFFQ_FAST_ISA", "")
    if instruction_set not in ("", *INSTRUCTION_SETS):
        return None, f"DIFFQ_FAST_ISA must be one of {', '.join(INSTRUCTION_SETS)}, got {instruction_set!r}"
    try:
        from ... import _core
    except ImportError as error:
        return None, f"the compiled module could not be imported: {error}"
    return _core, "the compiled module is loaded"


core, _reason = _load()


def status() -> tuple[bool, str]:
    """Whether the compiled core answers for CPU tensors, and why (not)."""
    return core is not None, _reason
