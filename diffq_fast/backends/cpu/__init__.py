"""Kernels for the CPU: they check what the core relies on, allocate, and pass addresses to the compiled core.

Where the core is missing, nothing is registered and the default kernels answer. They also answer for what the
core does not compute: dtypes other than float32, bfloat16 and float16.
"""

from __future__ import annotations

from .loading import core, status

__all__ = ["status"]

if core is not None:
    from . import kernels  # noqa: F401  (registers them)
