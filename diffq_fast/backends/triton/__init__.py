"""Kernels for CUDA devices, written in Triton; where they cannot run, nothing is registered and the reference
answers.

They also leave float64, and dtypes other than float32, bfloat16 and float16, to the reference.
"""

from __future__ import annotations

from .loading import active, status

__all__ = ["status"]

if active:
    from . import registration  # noqa: F401  (registers the kernels)
