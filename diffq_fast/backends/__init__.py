"""Kernels of the operators: each folder here is a backend that registers its kernels when it is imported.

A backend that is not always there has ``status() -> (active, reason)``, and may have ``ADVICE`` on how to get it. One
that keeps memory for its next results has ``empty_cache()``.
"""

from __future__ import annotations

import importlib
import pkgutil
import platform
from types import ModuleType
from typing import Any

import torch

from .. import _ops  # noqa: F401  (the schemas come first)
from .._version import __version__


def _load() -> dict[str, ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


_backends = _load()
memory: Any = _backends["cpu"].fingerprint
# The compiled core's kernel of that operator, or None. A call through torch's dispatcher, which comes back to Python,
# takes as long as a product with a small weight.
packed_linear_on_cpu: Any = getattr(getattr(_backends["cpu"], "packed_rows", None), "packed_linear", None)


def backend_info() -> dict[str, Any]:
    """What computes what here, and why: versions, and for each backend whether it is active.

    >>> sorted(backend_info())
    ['backends', 'device', 'platform', 'python', 'torch', 'version']
    """
    backends: dict[str, dict[str, Any]] = {
        "default": {"active": True, "reason": "plain PyTorch, the reference for every device"}
    }
    for name, module in _backends.items():
        if hasattr(module, "status"):
            active, reason = module.status()
            backends[name] = {"active": active, "reason": reason}
            if not active and hasattr(module, "ADVICE"):
                backends[name]["advice"] = module.ADVICE
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": gpu or "cpu",
        "backends": backends,
    }


def empty_cache() -> None:
    """Give back to the system what the backends keep for their next results."""
    for module in _backends.values():
        if hasattr(module, "empty_cache"):
            module.empty_cache()
