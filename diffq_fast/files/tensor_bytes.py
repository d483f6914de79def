"""Torch tensors as the bytes of a safetensors file, and back."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .safetensors_reader import Header, file_error

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16,
    "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(tensor: Any, who: str, name: str) -> str:
    """The file's name of a tensor's dtype; raises TypeError for what no safetensors file can hold."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{who}: {name}: expected a tensor, got {type(tensor).__name__}; only tensors can be stored")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        layout = "meta" if tensor.is_meta else str(tensor.layout) if tensor.layout != torch.strided else "quantized"
        raise TypeError(f"{who}: {name}: expected an ordinary dense tensor with data, got a {layout} one")
    if tensor.dtype not in DTYPE_NAMES:
        raise TypeError(f"{who}: {name}: a tensor of {tensor.dtype} cannot be stored; convert it first")
    return DTYPE_NAMES[tensor.dtype]


def tensor_bytes(tensor: Tensor, dtype: torch.dtype | None = None) -> np.ndarray:
    """The elements, in `dtype` or the tensor's own, in row-major order as little-endian bytes, uint8 and flat."""
    _refuse_big_endian()
    flat = tensor.detach().to(dtype or tensor.dtype).cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if not flat.numel():
        return np.empty(0, dtype=np.uint8)
    flat = flat.as_strided(flat.shape, (1,)).view(torch.uint8)  # a single element may have any stride
    return np.from_dlpack(flat)  # behind tensor.numpy() a weight's storage could not be resized, as fully_shard does


def tensor_from_bytes(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor over these bytes (no copy); `data` has exactly the length that dtype and shape ask for.

    Raises ValueError for a bool that is neither 0 nor 1: such bytes would make later results undefined.
    """
    _refuse_big_endian()
    if not data:
        return torch.empty(shape, dtype=dtype, device="cpu")
    flat = torch.frombuffer(data, dtype=torch.uint8)
    if dtype == torch.bool and int(flat.max()) > 1:
        raise ValueError(f"expected bytes 0 or 1 for bool, found {int(flat.max())}")
    return flat.view(dtype).reshape(shape)


def tensors_from_bytes(header: Header, stored: Mapping[str, bytearray]) -> dict[str, Tensor]:
    """The tensors of a file, over their bytes (no copies); FileError where the bytes cannot be those of a tensor."""
    tensors = {}
    for name, data in stored.items():
        entry = header.tensors[name]
        try:
            tensors[name] = tensor_from_bytes(data, DTYPES[entry.dtype], entry.shape)
        except ValueError as error:
            raise file_error(header.path, name, f"{error}; the file is damaged") from None
    return tensors


def memory_key(tensor: Tensor) -> Hashable:
    """Equal for tensors that show the same memory in the same way; a tensor without memory equals only itself. Of one
    that is sharded over processes, what this process holds is looked at."""
    shown: Any = tensor.detach().to_local() if type(tensor).__name__ == "DTensor" else tensor  # type: ignore[attr-defined]
    if shown.layout != torch.strided or shown.is_meta or is_lazy(shown) or shown.numel() == 0:
        return id(tensor)
    place, view = (shown.device, shown.data_ptr()), (shown.shape, shown.stride())
    return place, view, shown.dtype, shown.is_conj(), shown.is_neg()


def memory_keys(values: Mapping[Any, Any]) -> dict[Any, Hashable]:
    """The :func:`memory_key` of each tensor among these values, by name."""
    return {name: memory_key(value) for name, value in values.items() if isinstance(value, Tensor)}


def tied_names(values: Mapping[str, Any]) -> dict[str, str]:
    """For each value that is the same tensor as an earlier one: its name -> the first name of that tensor."""
    first: dict[Hashable, str] = {}
    ties = {}
    for name, value in values.items():
        key = memory_key(value) if isinstance(value, Tensor) else name
        if first.setdefault(key, name) != name:
            ties[name] = first[key]
    return ties


def _refuse_big_endian() -> None:
    if sys.byteorder != "little":
        raise RuntimeError("diffq_fast: files are little-endian and this machine is not; convert on another one")
