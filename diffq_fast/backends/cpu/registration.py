"""Registering the kernels of this backend, for tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..._ops import NAMESPACE

_library = torch.library.Library(NAMESPACE, "IMPL")


def kernel(function: Callable) -> Callable:
    """Register ``function`` as the CPU kernel of the operator that it is named after."""
    _library.impl(function.__name__, function, "CPU")
    return function
