"""diffq_fast: learned-bit-width compression of PyTorch models (DiffQ), fast on the CPU and the GPU.

Importing this package imports nothing heavy: each public name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .compat import names

if TYPE_CHECKING:
    from . import functional
    from .backends import backend_info
    from .compat import ts_export
    from .compat.alias import install_as_diffq, save_legacy
    from .exporters.export import export
    from .exporters.model_graph import export_onnx
    from .functional import empty_cache
    from .legacy.state import load_legacy
    from .packed.report import inspect
    from .packed.save_load import load, save
    from .post_training.calibration import calibrate, save_calibration
    from .post_training.pack import pack_checkpoint
    from .post_training.start import start_from_packed
    from .quantizers.activations import ActivationQuantizer
    from .quantizers.diffq import DiffQuantizer
    from .quantizers.lsq import LSQ
    from .quantizers.rate import RateQuantizer
    from .quantizers.restore import restore_quantized_state
    from .quantizers.size_target import SizeTarget
    from .quantizers.uniform import UniformQuantizer
    from .runtime.decompositions import decompositions
    from .watch.bits_log import BitsLog
    from .watch.bits_plot import plot_bits

__all__ = [
    "LSQ",
    "ActivationQuantizer",
    "BitsLog",
    "DiffQuantizer",
    "RateQuantizer",
    "SizeTarget",
    "UniformQuantizer",
    "__version__",
    "backend_info",
    "calibrate",
    "decompositions",
    "empty_cache",
    "export",
    "export_onnx",
    "functional",
    "inspect",
    "install_as_diffq",
    "load",
    "load_legacy",
    "pack_checkpoint",
    "plot_bits",
    "restore_quantized_state",
    "save",
    "save_calibration",
    "save_legacy",
    "start_from_packed",
    "ts_export",
]

_HOMES = {
    "DiffQuantizer": "quantizers.diffq",
    "UniformQuantizer": "quantizers.uniform",
    "LSQ": "quantizers.lsq",
    "ActivationQuantizer": "quantizers.activations",
    "RateQuantizer": "quantizers.rate",
    "SizeTarget": "quantizers.size_target",
    "restore_quantized_state": "quantizers.restore",
    "save": "packed.save_load",
    "load": "packed.save_load",
    "inspect": "packed.report",
    "pack_checkpoint": "post_training.pack",
    "calibrate": "post_training.calibration",
    "save_calibration": "post_training.calibration",
    "start_from_packed": "post_training.start",
    "BitsLog": "watch.bits_log",
    "plot_bits": "watch.bits_plot",
    "export": "exporters.export",
    "export_onnx": "exporters.model_graph",
    "save_legacy": "compat.alias",
    "load_legacy": "legacy.state",
    "install_as_diffq": "compat.alias",
    "decompositions": "runtime.decompositions",
    "backend_info": "backends",
    "empty_cache": "functional",
}


if not TYPE_CHECKING:  # a checker that saw this would take every misspelt name for one of the package's

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        elif name in names.DIFFQ_MODULES or name == "functional":
            value = importlib.import_module(f".{name}", __name__)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


names.install()
