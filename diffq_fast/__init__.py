"""diffq_fast: learned-bit-width compression of PyTorch models (DiffQ), fast on the CPU and the GPU.

Importing this package imports nothing heavy: each public name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "DiffQuantizer": "quantizers.diffq",
    "UniformQuantizer": "quantizers.uniform",
    "LSQ": "quantizers.lsq",
    "SizeTarget": "quantizers.size_target",
    "restore_quantized_state": "quantizers.restore",
    "save": "packed_file",
    "load": "packed_file",
    "inspect": "packed_report",
    "BitsLog": "bits_log",
    "plot_bits": "bits_plot",
    "save_legacy": "diffq_alias",
    "install_as_diffq": "diffq_alias",
    "backend_info": "backends",
}
_MODULES = ("functional", "ts_export")
__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
