"""Other formats of small weights: GGUF's, quantised by ggml itself, and half-quadratic quantisation (HQQ)."""

import ctypes
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HQQ_BITS_OF_A_GROUP = 32  # a scale and a zero, float16 both
HQQ_ROUNDS, HQQ_NORM, HQQ_BETA, HQQ_GROWTH = 20, 0.7, 10.0, 1.01  # of the paper

State = Mapping[str, Tensor]


def is_packed(tensor: Tensor) -> bool:
    """The tensors that every format quantises: matrices of more than 2,621 elements, 0.01 MB as float32."""
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() > 2621


class Ggml:
    """ggml's own quantisation, from the libraries in the package pywhispercpp."""

    def __init__(self) -> None:
        found = util.find_spec("pywhispercpp")
        if found is None or found.origin is None:
            raise ModuleNotFoundError("GGUF's formats need ggml: pip install --no-deps pywhispercpp gguf pyyaml tqdm")
        folder = Path(found.origin).parents[1]
        self._library = ctypes.CDLL(str(next(iter(sorted(folder.glob("libggml-base.so"))))))
        function = self._library.ggml_quantize_chunk
        function.restype = ctypes.c_size_t
        function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *([ctypes.c_int64] * 3), ctypes.c_void_p]

    def quantise(self, values: np.ndarray, kind: Any) -> np.ndarray:
        """uint8: blocks of float32 values, one after the other."""
        from gguf.constants import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[kind]
        values = np.ascontiguousarray(values, np.float32)
        blocks = np.empty(values.size // block * size, np.uint8)
        written = self._library.ggml_quantize_chunk(
            int(kind), values.ctypes.data, blocks.ctypes.data, 0, 1, values.size, None
        )
        if written != blocks.size:
            raise RuntimeError(f"ggml_quantize_chunk: expected {blocks.size} bytes, got {written}")
        return blocks


def gguf_file(state: State, name: str, path: Path) -> dict[str, Tensor]:
    """Write a GGUF file of one type, the rest in float16; returns what it holds, as floats.

    A weight's elements are taken in one row: 384 columns are no whole number of the 256 of a K-quant, for which
    llama.cpp would take a larger type.
    """
    import gguf

    kind, ggml = gguf.GGMLQuantizationType[name], Ggml()
    writer = gguf.GGUFWriter(path, "bert")
    for key, tensor in state.items():
        if is_packed(tensor):
            writer.add_tensor(key, ggml.quantise(tensor.numpy().reshape(-1), kind), raw_dtype=kind)
        elif tensor.is_floating_point():
            writer.add_tensor(key, tensor.numpy().astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in gguf.GGUFReader(path).tensors}
    return dict(state) | {
        key: torch.from_numpy(np.array(values, np.float32)).reshape(state[key].shape) for key, values in read.items()
    }


def hqq_file(state: State, bits: int, group: int, path: Path) -> dict[str, Tensor]:
    """Write HQQ levels, densely packed, with scales and zeros in float16; returns what the file holds, as floats."""
    from safetensors.torch import save_file

    stored, made = {}, dict(state)
    for key, tensor in state.items():
        if not is_packed(tensor):
            if tensor.is_floating_point():
                stored[key] = tensor.half()
                made[key] = stored[key].float()
            continue
        parts = hqq(tensor.reshape(-1, group), bits)
        stored |= hqq_parts(key, bits, *parts)
        made[key] = hqq_values(*parts).view(tensor.shape)
    save_file(stored, path)
    return made


def hqq_parts(key: str, bits: int, levels: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
    """What a file holds of one weight: its levels densely packed, its groups' scales and zeros, float16."""
    places = (levels.to(torch.uint8).reshape(-1, 1).numpy() >> np.arange(bits, dtype=np.uint8)) & 1
    packed = torch.from_numpy(np.packbits(places))
    return {f"{key}.levels": packed, f"{key}.scale": scale, f"{key}.zero": zero}


def hqq_values(levels: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The values of levels [groups, size]."""
    return (levels - zero.float()) * scale.float()


def hqq(groups: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Levels [groups, size], scales and zeros [groups, 1], both float16, by the paper's half-quadratic solver.

    Badri, Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023): the zeros that lessen the sum
    of |error|^0.7, by turns with the errors' generalised soft threshold; stopped where the mean error grows again.
    """
    most = 2**bits - 1
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = ((high - low) / most).clamp(min=1e-8)
    zero = (-low / scale).round() if bits == 4 else -low / scale
    beta, least, best = HQQ_BETA, float("inf"), zero
    for _ in range(HQQ_ROUNDS):
        levels = (groups / scale + zero).round().clamp(0, most)
        error = groups - (levels - zero) * scale
        mean = float(error.abs().mean())
        if mean >= least:
            break
        least, best = mean, zero
        magnitude = error.abs()
        kept = error.sign() * (magnitude - magnitude.clamp(min=1e-12).pow(HQQ_NORM - 1) / beta).clamp(min=0)
        zero = (levels - (groups - kept) / scale).mean(1, keepdim=True)
        beta *= HQQ_GROWTH
    scale, zero = scale.half(), best.half()
    return (groups / scale.float() + zero.float()).round().clamp(0, most), scale, zero
