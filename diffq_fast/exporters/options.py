"""What an export can be told, and what it is refused with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..files.safetensors_reader import Progress, printable

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ExportOptions(NamedTuple):
    """What all exporters are told; each reads what concerns it.

    dtype: of the floating tensors that are not quantised in the new file, a key of DTYPES.
    graph: an ONNX model whose initialisers have the names of the file's tensors.
    portable: standard ONNX operators alone.
    tolerance: the relative error up to which GGUF and compressed-tensors may round a weight again.
    keep_float: write a weight that the format cannot express as floats, in place of refusing the file.
    floats: fnmatch patterns of weights to be written as floats in any case.
    max_bytes: of the tensors of the new file; None: ten times what the packed one holds, and 64 MiB.
    progress: called as progress(tensor name, done, in all).
    """

    dtype: str = "float32"
    graph: str | None = None
    portable: bool = False
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
    """A floating tensor in `dtype`, others as they are; ExportError where a finite element would become infinite."""
    if not tensor.is_floating_point():
        return tensor
    changed = tensor.to(DTYPES[dtype])
    if bool((torch.isfinite(changed) != torch.isfinite(tensor)).any()):
        largest = float(tensor[torch.isfinite(tensor)].abs().max())
        limit = torch.finfo(DTYPES[dtype]).max
        raise ExportError(
            to, name, f"its largest element {largest:g} is beyond {dtype}'s {limit:g}; take another dtype"
        )
    return changed
