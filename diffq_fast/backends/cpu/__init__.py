"""Kernels for the CPU: they check what the core relies on, allocate, and pass addresses to the compiled core.

Where the core is missing, nothing is registered and the default kernels answer. They also answer for what the
core does not compute: dtypes other than float32, bfloat16 and float16.
"""

from __future__ import annotations

import ctypes
import sys
import warnings

from . import fingerprint
from .loading import core, status

__all__ = ["ADVICE", "empty_cache", "fingerprint", "status"]

ADVICE = (
    "install a wheel for this platform; or install a C++ compiler, and then diffq_fast again from its sources: "
    "pip install --force-reinstall --no-deps --no-cache-dir PATH_OR_NAME"
)

if core is not None:
    from . import (  # noqa: F401  (registers them)
        add_noise,
        coding,
        noise,
        packed_rows,
        planes,
        quantize,
        uniform_noise,
        weight_range,
        weight_sizes,
        widths,
        words,
    )
else:
    # Measured on one EPYC thread at 2**22 weights with widths 2-8: noise 8 times, packing into words 75, unpacking 200.
    warnings.warn(
        f"diffq_fast runs without its compiled core (reason: {status()[1]}); packing and noise use plain PyTorch "
        "and numpy: noise takes about 8 times as long, packed files over 50 times. diffq-fast doctor says how to get "
        "it.",
        stacklevel=2,
    )


def empty_cache() -> None:
    """Free the blocks that the core keeps for its next results, and the C library's free memory, where it is glibc.

    glibc keeps what lies below a block in use, which after a file is decoded may be several times the file.
    """
    if core is not None:
        core.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
