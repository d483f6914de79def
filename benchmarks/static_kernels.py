"""The Triton kernels as the launchers compile them: argument types, constants, and weights per thread and
step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton.language as tl

from diffq_fast.backends.triton import (
    add_noise,
    add_noise_backward_kernels,
    add_noise_finish_kernels,
    add_noise_kernels,
    add_noise_ragged_kernels,
    add_noise_ticketed,
    add_noise_ticketed_kernels,
    launching,
    noise_kernels,
    packed_rows,
    packed_rows_kernels,
    planes,
    planes_kernels,
    quantize_kernels,
    uniform_noise_kernels,
    weight_range_kernels,
    weight_sizes_kernels,
    words_kernels,
)
from diffq_fast.backends.triton.arguments import Config, Gradients, Rule, SizeBounds, Tables
from diffq_fast.backends.triton.weight_range import RANGE_TILE, RANGE_WARPS

_TABLES = {"tables": Tables("*i64", "*i64", "*i32")}
_RULE = {"rule": Rule("fp32", "fp32")}
_GRADIENTS = {"gradients": Gradients("*fp32", "*fp32", "*fp32")}
THREADS = 32 * launching.WARPS
_TYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}


@dataclass(frozen=True)
class Case:
    """One kernel, compiled one way. ``weights`` of a thread in what is counted: a round of the main loop, or
    (``through``) the way through the code that most programs take. ``of``: what stands for weights where a kernel has
    none."""

    name: str
    kernel: Any
    signature: dict[str, Any]
    constants: dict[str, Any]
    warps: int = launching.WARPS
    weights: float = 0
    fusion: bool = True
    through: bool = False
    of: str = "weights"
    program: int = 0  # weights of a program, where its config has no tile; 0: those that are counted


def _rounds(config: Config) -> int:
    """Weights per thread and round of the loop over whole tiles."""
    return config.whole_step // THREADS


def _forward(noise_kind: str, group_size: int = 8, noisy: str = "fp32", per_group: bool = False) -> Case:
    signature = _TABLES | {"key_ptr": "*i64", "ranges_ptr": "*fp32", "noisy_ptr": f"*{noisy}"} | _RULE
    steps = launching.tile_steps(group_size, narrow=noisy != "fp32")
    config = Config(True, group_size, per_group, "bits", noise_kind, weight=tl.float32, **steps)
    scope = ", range per group" if per_group else ""
    name = f"forward {noise_kind} g={group_size} to {noisy}{scope}"
    return Case(name, add_noise_kernels.add_noise_kernel, signature, {"CONFIG": config}, weights=_rounds(config))


def _ticketed(noise_kind: str, group_size: int = 8, noisy: str = "fp32") -> Case:
    """The forward in one launch; counted is its noise loop, which the range's tiles precede."""
    forward = _forward(noise_kind, group_size, noisy)
    results = add_noise_ticketed_kernels.Results("*fp32", "*i64", f"*{noisy}")
    signature = {"tables": Tables("*i64", "*i64", "*i64"), "tiles": "i32", "key_ptr": "*i64", "results": results}
    signature |= {"scratch": add_noise_ticketed_kernels.Scratch("*i32", "*i32")} | _RULE
    config = add_noise_ticketed.config_of(forward.constants["CONFIG"], narrow=noisy != "fp32")
    kernel = add_noise_ticketed_kernels.ticketed_noise_kernel
    return Case(f"one launch: {forward.name}", kernel, signature, {"CONFIG": config}, weights=_rounds(config))


def _backward(noise_kind: str, group_size: int = 8, grad: str = "fp32", per_group: bool = False) -> Case:
    signature = _TABLES | {"key_ptr": "*i64", "ranges_ptr": "*fp32", "partial_ptr": "*fp32"} | _GRADIENTS | _RULE
    steps = launching.tile_steps(group_size)
    config = Config(True, group_size, per_group, "bits", noise_kind, tl.float32, _TYPES[grad], **steps)
    scope = ", range per group" if per_group else ""
    name = f"backward {noise_kind} g={group_size} from {grad}{scope}"
    kernel = add_noise_backward_kernels.backward_kernel
    return Case(name, kernel, signature, {"CONFIG": config}, weights=_rounds(config))


def _finish(grad: str, suffix: str) -> Case:
    config = add_noise.finish_config(_backward("uniform", grad=grad).constants["CONFIG"])
    signature = _TABLES | {"ranges_ptr": "*fp32", "extremes_ptr": "*i64", "partial_ptr": "*fp32"} | _GRADIENTS | _RULE
    kernel = add_noise_finish_kernels.finish_backward_kernel
    return Case(f"finish backward{suffix}", kernel, signature, {"CONFIG": config}, weights=config.chunk // THREADS)


def _ragged(noisy: str, suffix: str) -> list[Case]:
    """Groups of 7. ``noisy``: the type of noisy weights and of gradients."""
    forward, backward = _forward("gaussian", noisy=noisy), _backward("gaussian", grad=noisy)
    config = Config(True, 7, True, "bits", "gaussian", weight=tl.float32, groups=128, columns=8)
    ragged = add_noise_ragged_kernels
    return [
        Case(f"ragged forward{suffix}", ragged.ragged_noise_kernel, forward.signature, {"CONFIG": config},
             weights=7, through=True),
        Case(f"ragged backward{suffix}", ragged.ragged_backward_kernel, backward.signature,
             {"CONFIG": config._replace(grad=_TYPES[noisy])}, weights=7, through=True),
    ]  # fmt: skip


def _uniform_noise(noisy: str = "fp32", group_size: int = 64) -> list[Case]:
    """Noise of one step, and the sums that are the steps' gradients; ``noisy``: the type of what is written, and read
    by the backward."""
    signature = _TABLES | {"key_ptr": "*i64"}
    config = Config(True, group_size, weight=tl.float32, **launching.tile_steps(group_size, narrow=noisy != "fp32"))
    sums = Config(True, group_size, grad=_TYPES[noisy], **launching.tile_steps(group_size))
    kernels = uniform_noise_kernels
    to, of = ("", "") if noisy == "fp32" else (f", to {noisy}", f", from {noisy}")
    return [
        Case(f"uniform noise of one step, g={group_size}{to}", kernels.uniform_noise_kernel,
             signature | {"noisy_ptr": f"*{noisy}"}, {"CONFIG": config}, weights=_rounds(config)),
        Case(f"sums of uniform noise, g={group_size}{of}", kernels.group_sums_kernel,
             signature | {"sums_ptr": "*fp32"}, {"CONFIG": sums}, weights=_rounds(sums), fusion=False),
    ]  # fmt: skip


def _sums_of_pieces() -> Case:
    """Groups that are ragged or large."""
    signature = _TABLES | {"key_ptr": "*i64", "sums_ptr": "*fp32", "group_size": "i32"}
    config = Config(True, grad=tl.float32, tile=launching.TILE, part_step=launching.PART_STEP)
    kernel = uniform_noise_kernels.piece_sums_kernel
    rounds = launching.PART_STEP // THREADS
    return Case("sums of uniform noise, pieces of groups", kernel, signature, {"CONFIG": config}, weights=rounds)


def _pack(width: int, ordered: bool) -> list[Case]:
    signature = {"source_ptr": "*fp32", "ranges_ptr": "*fp32", "order_ptr": "*i64", "words_ptr": "*i32"}
    back = {"words_ptr": "*i32", "ranges_ptr": "*fp32", "order_ptr": "*i64", "result_ptr": "*fp32"}
    config = {"CONFIG": words_kernels.WordsConfig(width, 1 if ordered else 8, False, ordered, True, True, 128)}
    one = " of one width" if ordered else ""
    return [
        Case(f"quantise + pack, {width} bits{one}", words_kernels.pack_kernel, signature | {"number": "i64"},
             config, weights=32, fusion=False, through=True),
        Case(f"unpack + dequantise, {width} bits{one}", words_kernels.unpack_kernel, back | {"number": "i64"},
             config, weights=32, fusion=False, through=True),
    ]  # fmt: skip


def _levels() -> list[Case]:
    """Quantising alone, and packing of levels."""
    levels = {"source_ptr": "*fp32", "widths_ptr": "*u8", "ranges_ptr": "*fp32", "result_ptr": "*i32"}
    levels |= {"elements": "i64"}
    config = quantize_kernels.RequantizeConfig(8, False, True, False, True, runs=256, run=8)
    alone = {"CONFIG": words_kernels.WordsConfig(5, 1, False, True, False, True, 128)}
    alone |= {"ranges_ptr": None, "order_ptr": None}
    kernel = quantize_kernels.requantize_kernel
    return [
        Case("quantise", kernel, levels, {"CONFIG": config}, weights=16, fusion=False, through=True),
        Case("fake quantise", kernel, levels | {"result_ptr": "*fp32"},
             {"CONFIG": config._replace(dequantize=True)}, weights=16, fusion=False, through=True),
        Case("pack", words_kernels.pack_kernel, {"source_ptr": "*i32", "words_ptr": "*i32", "number": "i32"}, alone,
             weights=32, fusion=False, through=True),
        Case("unpack", words_kernels.unpack_kernel, {"words_ptr": "*i32", "result_ptr": "*i32", "number": "i32"},
             alone, weights=32, fusion=False, through=True),
    ]  # fmt: skip


def _planes() -> list[Case]:
    values = {"values_ptr": "*i16", "planes_ptr": "*i64", "count": "i64", "cells": "i64", "columns": "i64"}
    weight = {"weight_ptr": "*fp32", "ranges_ptr": "*fp32", "order_ptr": "*i64", "planes_ptr": "*i64"}
    back = {"planes_ptr": "*i64", "values_ptr": "*i16", "length": "i64", "cells": "i64", "columns": "i64"}
    config = planes_kernels.PlanesConfig(8, 8, 64, planes.LANES, 8, ordered=False)
    rows, unpacked = planes_kernels.UNROLLED.value, planes_kernels.ROWS_UNPACKED.value
    return [
        Case("pack planes", planes_kernels.pack_planes_kernel, values, {"CONFIG": config}, weights=rows,
             program=64 * planes.LANES),
        Case("quantise + pack planes", planes_kernels.quantize_planes_kernel,
             weight | {"number": "i64", "cells": "i64"}, {"CONFIG": config}, weights=rows, fusion=False,
             program=64 * planes.LANES),
        Case("unpack planes", planes_kernels.unpack_planes_kernel, back, {"CONFIG": config}, weights=unpacked,
             through=True),
    ]  # fmt: skip


def _under_autocast() -> list[Case]:
    """The weights stay float32; what is written to the noisy weight, and its gradient, are bfloat16."""
    return [
        _forward("gaussian", noisy="bf16"),
        _forward("uniform", noisy="bf16", per_group=True),
        _forward("uniform", noisy="fp16"),
        _ticketed("gaussian", noisy="bf16"),
        _backward("gaussian", grad="bf16"),
        _backward("uniform", grad="bf16", per_group=True),
        _finish("bf16", " from bf16"),
        _ragged("bf16", " to bf16")[0],
        _ragged("bf16", " from bf16")[1],
    ]


def _others() -> list[Case]:
    noise = {"key_ptr": "*i64", "stream": "i64", "begin": "i64", "count": "i64", "noise_ptr": "*fp32"}
    ranges = _TABLES | {"programs": "i32", "partial_ptr": "*i32", "counters_ptr": "*i32", "ranges_ptr": "*fp32"}
    range_config = Config(weight=tl.float32, range_step=RANGE_TILE, chunk=launching.CHUNK)
    group_config = Config(group_size=8, weight=tl.float32, groups=128, columns=8)
    return [
        Case("range", weight_range_kernels.weight_range_kernel, ranges | {"extremes_ptr": "*i64"},
             {"CONFIG": range_config}, RANGE_WARPS, RANGE_TILE // (32 * RANGE_WARPS), through=True),
        _finish("fp32", ""),
        Case("noise", noise_kernels.noise_kernel, noise,
             {"CONFIG": Config(True, noise_kind="gaussian", tile=launching.STEP)},
             weights=launching.STEP // THREADS, through=True),
        Case("range per group", weight_range_kernels.group_range_kernel, _TABLES | {"ranges_ptr": "*fp32"},
             {"CONFIG": group_config}, weights=8, through=True),
        *_ragged("fp32", ""),
        *_levels(),
        *_planes(),
    ]  # fmt: skip


def _weight_sizes(param: str) -> list[Case]:
    config = Config(True, param=param, tile=launching.TILE, part_step=launching.PART_STEP, chunk=launching.CHUNK)
    constants, size = {"CONFIG": config}, {"group_size": "i32"}
    finish = {"parts_ptr": "*fp32", "sizes_ptr": "*fp32", "bounds": SizeBounds("fp32", "fp32")} | size | _RULE
    backward = {"grads_ptr": "*fp32", "grad_logits_ptr": "*fp32"} | size | _RULE
    kernels, suffix, rounds = weight_sizes_kernels, f", {param}", launching.PART_STEP // THREADS
    return [
        Case(
            f"bits of groups{suffix}",
            kernels.bits_parts_kernel,
            _TABLES | {"parts_ptr": "*fp32"} | _RULE,
            constants,
            weights=rounds,
            of="groups",
        ),
        Case(
            f"sizes of weights{suffix}",
            kernels.finish_sizes_kernel,
            _TABLES | finish,
            constants,
            weights=launching.CHUNK // THREADS,
            of="parts of sums",
        ),
        Case(
            f"gradients of sizes{suffix}",
            kernels.sizes_backward_kernel,
            _TABLES | backward,
            constants,
            weights=rounds,
            of="groups",
        ),
    ]


def _packed_rows(*, centred: bool, vectors: int) -> list[Case]:
    """Rows of 4,096 elements, a width and a scale for each 64."""
    rows = packed_rows_kernels.Rows("*i32", "*i32", "*u8", "*fp32", "*fp32", "i64", "i32", "i32")
    at_once = packed_rows.ROWS if vectors == 1 else 1
    config = packed_rows_kernels.RowsConfig(64, 64, 16, 64, at_once, vectors, False, centred, 0)
    multiplied = {"vectors_ptr": "*fp32", "number": "i32", "rows": rows, "result_ptr": "*fp32"}
    tile = packed_rows.TILE // THREADS
    cases = [
        Case(f"multiply packed rows, {vectors} vectors", packed_rows_kernels.multiply_rows_kernel, multiplied,
             {"CONFIG": config}, weights=at_once * tile, fusion=False, program=at_once * 4096)
    ]  # fmt: skip
    if vectors == 1:
        unpacked = {"indices_ptr": "*i64", "rows": rows, "result_ptr": "*fp32"}
        config, kernel = config._replace(rows=1), packed_rows_kernels.unpack_rows_kernel
        cases.append(
            Case("unpack packed rows", kernel, unpacked, {"CONFIG": config}, weights=tile, fusion=False, program=4096)
        )
    return cases


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
    *_uniform_noise(),
    *_uniform_noise("bf16"),
    *_others(),
    _sums_of_pieces(),
    *_packed_rows(centred=True, vectors=1),
    *_packed_rows(centred=False, vectors=8),
    *_weight_sizes("bits"),
    *_weight_sizes("noise"),
]
