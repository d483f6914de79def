"""What an export can be told, and what it is refused with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..files.safetensors_reader import Progress, printable

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# All that a safetensors file has; the other formats know those above.
ALL_DTYPES = DTYPES | {
    "float64": torch.float64,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
E4M3FN_END = 464.0  # half-way between its largest value, 448, and what would be the next one


class ExportOptions(NamedTuple):
    """What all exporters are told; each reads what concerns it.

    dtype: of the floating tensors that are not quantised in the new file, a key of DTYPES, for safetensors of
        ALL_DTYPES.
    graph: an ONNX model whose initialisers have the names of the file's tensors.
    portable: standard ONNX operators alone.
    activations: "float" or "int8", how onnxruntime's products with packed weights take their inputs.
    tolerance: the relative error up to which GGUF and compressed-tensors may round a weight again.
    keep_float: write a weight that the format cannot express as floats, in place of refusing the file.
    floats: fnmatch patterns of weights to be written as floats in any case.
    max_bytes: of the tensors of the new file; None: ten times what the packed one holds, and 64 MiB.
    progress: called as progress(tensor name, done, in all).
    """

    dtype: str = "float32"
    graph: str | None = None
    portable: bool = False
    activations: str = "float"
    tolerance: float = 0.01
    keep_float: bool = False
    floats: tuple[str, ...] = ()
    max_bytes: int | None = None
    progress: Progress | None = None


class ExportError(ValueError):
    """A tensor that the format cannot express."""

    def __init__(self, to: str, name: str, reason: str) -> None:
        super().__init__(f"export: {printable(name)}: {to} cannot express it: {reason}")
        self.name, self.reason = name, reason


def cast(to: str, name: str, tensor: Tensor, dtype: str) -> Tensor:
    """A floating tensor in `dtype`, others as they are; ExportError for an element beyond the dtype's range."""
    if not tensor.is_floating_point():
        return tensor
    kind = ALL_DTYPES[dtype]
    changed = tensor.to(kind)
    beyond = _beyond(tensor, changed)
    if bool(beyond.any()):
        largest, limit = float(tensor.double()[beyond].abs().max()), torch.finfo(kind).max
        raise ExportError(
            to, name, f"its largest element {largest:g} is beyond {dtype}'s {limit:g}; take another dtype"
        )
    return changed


def _beyond(tensor: Tensor, changed: Tensor) -> Tensor:
    """Elements that are finite and do not remain so; of float8_e4m3fn, which has no infinity, infinite ones too."""
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    if changed.dtype == torch.float8_e4m3fn:  # torch makes NaN of them, or the largest value, by its version
        return wide.abs() > E4M3FN_END
    return torch.isfinite(changed.float() if changed.dtype.itemsize == 1 else changed) != torch.isfinite(wide)
