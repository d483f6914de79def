"""Registering the kernels of this backend, for tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable

from ..._ops import lasting_library

_library = lasting_library("IMPL")


def kernel(function: Callable) -> Callable:
    """Register ``function`` as the CPU kernel of the operator that it is named after."""
    _library.impl(function.__name__, function, "CPU")
    return function
