"""Launcher of the gradients; meanings and shapes: ``diffq_fast/_ops.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import default
from .backward_kernels import backward_kernel, finish_backward_kernel
from .forward import tensor_range
from .launching import (
    CHUNK,
    PTX,
    TILE,
    TYPES,
    WARPS,
    by_dtype,
    contiguous,
    curve_of,
    divides_step,
    group_total,
    launch_plan,
    one_row_each,
    ragged_plan,
    ragged_shape,
    supported,
    take,
    tile_constants,
)
from .ragged_kernels import ragged_backward_kernel
from .tables import addresses_of, outputs_of, pieces_of


def add_noise_backward(
    grads,
    weights,
    logits,
    range,
    extremes,
    key,
    streams,
    group_size,
    min_bits,
    max_bits,
    param,
    kind,
    per_group,
):
    options = group_size, min_bits, max_bits, param, kind, per_group
    if not supported(grads, weights, logits):
        return default.add_noise_backward(grads, weights, logits, range, extremes, key, streams, *options)
    grads, weights = contiguous(grads), contiguous(weights)
    range, extremes = range.contiguous(), extremes.contiguous()
    in_groups = per_group and group_size != 0
    if per_group and not in_groups:
        range, extremes = tensor_range(weights)
    grad_logits = torch.empty(group_total(weights, group_size), device=key.device)
    nonfinite = one_row_each(weights, (), torch.float32)
    results = grad_logits, nonfinite
    shapes = [logit.shape for logit in logits]
    logits = contiguous(logits, torch.float32)
    grad_weights: list[Tensor] = list(weights)
    curve = curve_of(min_bits, max_bits, param)
    for indices, dtypes in by_dtype(grads, weights):
        constants = {
            "GROUP": group_size,
            "PER_GROUP": in_groups,
            "PARAM": param,
            "PTX": PTX,
            "num_warps": WARPS,
        }
        constants |= {"GRAD": TYPES[dtypes[0]], "WEIGHT": TYPES[dtypes[1]]}
        lists = take(grads, indices), take(weights, indices), take(logits, indices)
        bounds = range, extremes, key
        outputs = _launch(lists, weights, indices, streams, bounds, curve, kind, constants, results)
        for index, output in zip(indices, outputs, strict=True):
            grad_weights[index] = output
    return grad_weights, pieces_of(grad_logits, shapes), nonfinite


def _launch(
    lists: tuple[list[Tensor], list[Tensor], list[Tensor]],
    weights: Sequence[Tensor],
    indices: Sequence[int],
    streams: Sequence[int],
    bounds: tuple[Tensor, Tensor, Tensor],
    curve: tuple[float, float],
    kind: str,
    constants: dict,
    results: tuple[Tensor, Tensor],
) -> list[Tensor]:
    """Both launches for the weights at ``indices``; returns their gradients, writes the logits' into
    ``results``."""
    found, extremes, key = bounds
    grad_logits, nonfinite = results
    group_size = constants["GROUP"]
    if divides_step(group_size):
        kernel, shape = backward_kernel, tile_constants(group_size)
        plan = launch_plan(weights, indices, group_size, TILE, streams)
    else:
        kernel, shape = (
            ragged_backward_kernel,
            dict(zip(("ROWS", "COLUMNS"), ragged_shape(group_size), strict=True)),
        )
        plan = ragged_plan(weights, indices, group_size, streams)
    buffer, outputs = outputs_of(plan, lists[1][0].dtype)
    programs, parts = plan.owners.numel(), plan.part_owners.shape[0]
    if programs:
        addresses = addresses_of(*lists)
        partial = torch.empty((programs, 2), device=buffer.device)
        kernel[(programs,)](
            addresses, plan.rows, plan.owners, key, found, partial, buffer, grad_logits, *curve,
            KIND=kind, **shape, **constants,
        )  # fmt: skip
        finish_backward_kernel[(parts,)](
            addresses, plan.rows, plan.part_owners, found, extremes, partial, buffer, grad_logits, nonfinite,
            *curve, CHUNK=CHUNK, **constants,
        )  # fmt: skip
    return outputs
