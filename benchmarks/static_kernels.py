"""The Triton kernels as the launchers compile them: argument types, constants, and weights per thread and
step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton.language as tl

from diffq_fast.backends.triton import (
    backward_kernels,
    export_kernels,
    launching,
    noise_kernels,
    plane_kernels,
    ragged_kernels,
    range_kernel,
    ticketed,
    ticketed_kernel,
)
from diffq_fast.backends.triton.forward import RANGE_TILE, RANGE_WARPS

_TABLES = {"addresses": "*i64", "plan": "*i64", "owners": "*i32"}
_CURVE = {"low": "fp32", "high": "fp32"}
FINISH = {"addresses": "*i64", "plan": "*i64", "part_owners": "*i32", "found": "*fp32", "extremes": "*i64"}
FINISH |= {"partial": "*fp32", "grad_weight": "*fp32", "grad_logits": "*fp32", "nonfinite": "*fp32", **_CURVE}


@dataclass(frozen=True)
class Case:
    """One kernel, compiled one way. ``weights`` per thread and round of the main loop; 0 where it is not
    counted."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int = launching.WARPS
    weights: int = 0
    fusion: bool = True


def _forward(kind: str, group_size: int = 8, noisy: str = "fp32", per_group: bool = False) -> Case:
    signature = _TABLES | {"key": "*i64", "found": "*fp32", "noisy": f"*{noisy}"} | _CURVE
    constants = {
        "GROUP": group_size,
        "PER_GROUP": per_group,
        "PARAM": "bits",
        "KIND": kind,
        "DTYPE": tl.float32,
    }
    constants |= launching.tile_constants(group_size, narrow=noisy != "fp32")
    scope = ", range per group" if per_group else ""
    weights = constants["WHOLE_STEP"] // (32 * launching.WARPS)
    name = f"forward {kind} g={group_size} to {noisy}{scope}"
    return Case(name, noise_kernels.add_noise_kernel, signature, constants, weights=weights)


def _ticketed(kind: str, group_size: int = 8, noisy: str = "fp32") -> Case:
    """The forward in one launch; counted is its noise loop, which the range's tiles precede."""
    forward = _forward(kind, group_size, noisy)
    signature = {"addresses": "*i64", "plan": "*i64", "tickets": "*i64", "tiles": "i32", "weights": "i32"}
    signature |= {"state": "*i32", "key": "*i64", "partial": "*i32", "found": "*fp32", "extremes": "*i64"}
    signature |= {"noisy": f"*{noisy}"} | _CURVE
    constants = {name: value for name, value in forward.constants.items() if name != "PER_GROUP"}
    constants |= ticketed.rounds(group_size, narrow=noisy != "fp32")
    constants |= {"RANGE_STEP": ticketed.RANGE_STEP, "CHUNK": launching.CHUNK, "COUNTERS": ticketed.COUNTERS}
    weights = constants["WHOLE_STEP"] // (32 * launching.WARPS)
    name = f"one launch: {forward.name}"
    return Case(name, ticketed_kernel.ticketed_noise_kernel, signature, constants, weights=weights)


def _backward(kind: str, group_size: int = 8, grad: str = "fp32", per_group: bool = False) -> Case:
    signature = _TABLES | {"key": "*i64", "found": "*fp32", "partial": "*fp32"} | _CURVE
    signature |= {"grad_weight": "*fp32", "grad_logits": "*fp32"}
    constants = {
        "GROUP": group_size,
        "PER_GROUP": per_group,
        "PARAM": "bits",
        "KIND": kind,
        "WEIGHT": tl.float32,
    }
    constants |= {
        "GRAD": tl.bfloat16 if grad == "bf16" else tl.float32,
        **launching.tile_constants(group_size),
    }
    scope = ", range per group" if per_group else ""
    weights = constants["WHOLE_STEP"] // (32 * launching.WARPS)
    name = f"backward {kind} g={group_size} from {grad}{scope}"
    return Case(name, backward_kernels.backward_kernel, signature, constants, weights=weights)


def _pack(width: int, ordered: bool) -> list[Case]:
    signature = {"source": "*fp32", "found": "*fp32", "order": "*i64", "words": "*i32", "count": "i64"}
    constants = {"WIDTH": width, "GROUP": 8, "PER_GROUP": False, "ORDERED": ordered, "LANES": 128}
    back = {"words": "*i32", "found": "*fp32", "order": "*i64", "result": "*fp32", "count": "i64"}
    one = " of one width" if ordered else ""
    return [
        Case(f"quantise + pack, {width} bits{one}", export_kernels.pack_kernel, signature,
             constants | {"QUANTIZE": True, "FUSED": True}, weights=32, fusion=False),
        Case(f"unpack + dequantise, {width} bits{one}", export_kernels.unpack_kernel, back,
             constants | {"DEQUANTIZE": True}, weights=32, fusion=False),
    ]  # fmt: skip


def _under_autocast() -> list[Case]:
    """The weights stay float32; what is written to the noisy weight, and its gradient, are bfloat16."""
    ragged = {"GROUP": 7, "PARAM": "bits", "KIND": "gaussian", "ROWS": 128, "COLUMNS": 8}
    types = {"GRAD": tl.bfloat16, "WEIGHT": tl.float32}
    forward, backward = _forward("gaussian", noisy="bf16"), _backward("gaussian", grad="bf16")
    return [
        forward,
        _forward("uniform", noisy="bf16", per_group=True),
        _forward("uniform", noisy="fp16"),
        _ticketed("gaussian", noisy="bf16"),
        backward,
        _backward("uniform", grad="bf16", per_group=True),
        Case("finish backward from bf16", backward_kernels.finish_backward_kernel, FINISH,
             {"GROUP": 8, "PER_GROUP": False, "PARAM": "bits", "CHUNK": launching.CHUNK, **types}),
        Case("ragged forward to bf16", ragged_kernels.ragged_noise_kernel, forward.signature,
             ragged | {"DTYPE": tl.float32}),
        Case("ragged backward from bf16", ragged_kernels.ragged_backward_kernel, backward.signature,
             ragged | types | {"PER_GROUP": True}),
    ]  # fmt: skip


def _others() -> list[Case]:
    noise = {"key": "*i64", "stream": "i64", "start": "i64", "first": "i64", "stop": "i64", "noise": "*fp32"}
    found = {"programs": "i32", "partial": "*i32", "finished": "*i32", "found": "*fp32", "extremes": "*i64"}
    ragged = {"GROUP": 7, "PARAM": "bits", "KIND": "gaussian", "ROWS": 128, "COLUMNS": 8}
    types = {"GRAD": tl.float32, "WEIGHT": tl.float32}
    planes = {"values": "*i16", "planes": "*i64", "count": "i64", "cells": "i64", "columns": "i64"}
    fused = {"weight": "*fp32", "found": "*fp32", "order": "*i64", "planes": "*i64", "count": "i64", "cells": "i64"}
    unplanes = {"planes": "*i64", "values": "*i16", "length": "i64", "columns": "i64", "nbits": "i32"}
    levels_alone = {"found": None, "order": None, "WIDTH": 5, "GROUP": 8, "PER_GROUP": False, "ORDERED": True}
    levels_alone |= {"LANES": 128}
    levels = {"source": "*fp32", "widths": "*u8", "found": "*fp32", "result": "*i32", "count": "i64"}
    requantize = {"GROUP": 8, "PER_GROUP": False, "FUSED": True, "ROWS": 256, "COLUMNS": 8}
    return [
        Case("range", range_kernel.weight_range_kernel, _TABLES | found,
             {"FIELDS": 1, "DTYPE": tl.float32, "TILE": RANGE_TILE, "CHUNK": launching.CHUNK}, RANGE_WARPS),
        Case("finish backward", backward_kernels.finish_backward_kernel, FINISH,
             {"GROUP": 8, "PER_GROUP": False, "PARAM": "bits", "CHUNK": launching.CHUNK, **types}),
        Case("noise", noise_kernels.noise_kernel, noise, {"KIND": "gaussian", "TILE": launching.STEP}),
        Case("range per group", ragged_kernels.group_range_kernel, _TABLES | {"found": "*fp32"},
             {"FIELDS": 1, "GROUP": 8, "DTYPE": tl.float32, "ROWS": 128, "COLUMNS": 8}),
        Case("ragged forward", ragged_kernels.ragged_noise_kernel, _forward("gaussian").signature,
             ragged | {"DTYPE": tl.float32}),
        Case("ragged backward", ragged_kernels.ragged_backward_kernel, _backward("gaussian").signature,
             ragged | types | {"PER_GROUP": True}),
        Case("quantise", export_kernels.requantize_kernel, levels,
             requantize | {"QUANTIZE": True, "DEQUANTIZE": False}, fusion=False),
        Case("fake quantise", export_kernels.requantize_kernel, levels | {"result": "*fp32"},
             requantize | {"QUANTIZE": True, "DEQUANTIZE": True}, weights=16, fusion=False),
        Case("pack", export_kernels.pack_kernel, {"source": "*i32", "words": "*i32", "count": "i32"},
             levels_alone | {"QUANTIZE": False, "FUSED": True}, fusion=False),
        Case("unpack", export_kernels.unpack_kernel, {"words": "*i32", "result": "*i32", "count": "i32"},
             levels_alone | {"DEQUANTIZE": False}, fusion=False),
        Case("pack planes", plane_kernels.pack_planes_kernel, planes,
             {"NBITS": 8, "PLANES": 8, "ROWS": 64, "LANES": 32}),
        Case("quantise + pack planes", plane_kernels.quantize_planes_kernel, fused,
             {"WIDTH": 8, "PLANES": 8, "GROUP": 8, "ORDERED": False, "LANES": 32}, fusion=False),
        Case("unpack planes", plane_kernels.unpack_planes_kernel, unplanes, {"ROWS": 64, "TILE": 2048}),
    ]  # fmt: skip


CASES = [
    _forward("uniform"),
    _forward("gaussian"),
    _forward("uniform", noisy="bf16"),
    _forward("uniform", group_size=1),
    _forward("uniform", per_group=True),
    _forward("gaussian", group_size=0),
    _forward("gaussian", group_size=7),
    _forward("gaussian", group_size=4096, noisy="fp16"),
    _ticketed("uniform"),
    _ticketed("gaussian"),
    _ticketed("uniform", noisy="bf16"),
    _ticketed("uniform", group_size=1),
    _ticketed("gaussian", group_size=0),
    _backward("uniform"),
    _backward("gaussian"),
    _backward("uniform", grad="bf16"),
    _backward("uniform", group_size=1),
    _backward("uniform", group_size=0),
    _backward("uniform", per_group=True),
    *_pack(4, ordered=True),
    *_pack(8, ordered=False),
    *_under_autocast(),
    *_others(),
]
