"""Launchers of noisy weights and of their gradients; meanings and shapes: ``diffq_fast/_ops.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...reference.options import NoiseOptions
from ...reference.sizes import group_count
from .. import default
from . import add_noise_ticketed as ticketed
from . import loading
from .add_noise_backward_kernels import backward_kernel
from .add_noise_finish_kernels import finish_backward_kernel
from .add_noise_kernels import add_noise_kernel
from .add_noise_ragged_kernels import ragged_backward_kernel, ragged_noise_kernel
from .arguments import PARTIAL_COLUMNS, Config, Gradients, Tables, rule_of
from .launching import (
    CHUNK,
    TILE,
    TYPES,
    by_dtype,
    config_of,
    contiguous,
    divides_step,
    empty_ranges,
    for_each_weight,
    launch,
    launch_plan,
    ragged_plan,
    ragged_steps,
    ranges_in_groups,
    supported,
    take,
    tile_steps,
)
from .tables import Plan, outputs_of, pieces_of
from .weight_range import empty_tensor_ranges, tensor_ranges, without_empty


def add_noise(weights, logits, key, streams, nonfinite, *arguments):
    """``arguments``: the six noise options and the dtype of the noisy weights."""
    options, dtype = NoiseOptions.with_dtype(arguments)
    if not supported(weights, logits) or not (dtype is None or dtype in TYPES):
        return default.add_noise(weights, logits, key, streams, nonfinite, *arguments)
    one_launch = loading.ticketed and ticketed.takes(options)
    return noisy_weights(weights, logits, key, streams, options, dtype, one_launch)


def noisy_weights(
    weights: Sequence[Tensor],
    logits: Sequence[Tensor],
    key: Tensor,
    streams: Sequence[int],
    options: NoiseOptions,
    dtype: torch.dtype | None = None,
    one_launch: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Noisy weights of ``dtype`` (None: each its weight's own), their ranges and extremes; in one launch per dtype of
    the weights, where ``ticketed.takes`` allows, or in two."""
    weights, logits = contiguous(weights), contiguous(logits, torch.float32)
    ranges, extremes = _ranges(weights, options, one_launch)
    rule = rule_of(options.min_bits, options.max_bits, options.param)
    noisy: list[Tensor] = list(weights)
    for indices, (own,) in by_dtype(weights):
        narrow = (dtype or own).itemsize < 4
        kernel, plan, config = _noise_form(weights, indices, streams, config_of(options, weight=TYPES[own]), narrow)
        buffer, outputs = outputs_of(plan, dtype or own)
        tables = plan.tables(take(weights, indices), take(logits, indices))
        if one_launch:
            results = ticketed.Results(ranges, extremes, buffer)
            ticketed.launch_tickets(plan, tables, key, results, rule, ticketed.config_of(config, narrow))
        else:
            launch(kernel, sum(plan.programs), tables, key, ranges, buffer, rule, CONFIG=config)
        for index, output in zip(indices, outputs, strict=True):
            noisy[index] = output
    if options.per_group and not options.group_size:
        ranges, extremes = without_empty(weights, ranges)
    return noisy, ranges, extremes


def _ranges(weights: Sequence[Tensor], options: NoiseOptions, one_launch: bool) -> tuple[Tensor, Tensor]:
    """Ranges and extremes; where the noise's own launch writes them, uninitialised."""
    if ranges_in_groups(options):
        return empty_ranges(weights, options.group_size)
    return empty_tensor_ranges(weights) if one_launch else tensor_ranges(weights)


def _noise_form(
    weights: Sequence[Tensor], indices: Sequence[int], streams: Sequence[int], config: Config, narrow: bool
) -> tuple[Any, Plan, Config]:
    """Kernel, plan and full config of noise for ``weights[indices]``; ``narrow``: of fewer than 32 bits."""
    group_size = config.group_size
    if config.per_group and not divides_step(group_size):
        plan = ragged_plan(weights, indices, group_size, streams)
        return ragged_noise_kernel, plan, config._replace(**ragged_steps(group_size))
    plan = launch_plan(weights, indices, group_size, TILE, streams)
    return add_noise_kernel, plan, config._replace(**tile_steps(group_size, narrow))


def add_noise_backward(grads, weights, logits, ranges, extremes, key, streams, *arguments):
    """``arguments``: the six noise options."""
    options = NoiseOptions.from_operator(*arguments)
    if not supported(grads, weights, logits):
        return default.add_noise_backward(grads, weights, logits, ranges, extremes, key, streams, *arguments)
    grads, weights = contiguous(grads), contiguous(weights)
    ranges, extremes = ranges.contiguous(), extremes.contiguous()
    if options.per_group and not options.group_size:
        ranges, extremes = tensor_ranges(weights)
    groups = sum(group_count(weight.numel(), options.group_size) for weight in weights)
    grad_logits = torch.empty(groups, dtype=torch.float32, device=key.device)
    nonfinite = for_each_weight(weights, (), torch.float32)
    lists = weights, contiguous(logits, torch.float32), grads
    grad_weights: list[Tensor] = list(weights)
    for indices, dtypes in by_dtype(weights, grads):
        kernel, plan, config = _gradient_form(weights, indices, streams, options, dtypes)
        buffer, outputs = outputs_of(plan, dtypes[0])
        tables = plan.tables(*(take(tensors, indices) for tensors in lists))
        gradients = Gradients(buffer, grad_logits, nonfinite)
        _launch_gradients(kernel, plan, tables, (key, ranges, extremes), gradients, options, config)
        for index, output in zip(indices, outputs, strict=True):
            grad_weights[index] = output
    return grad_weights, pieces_of(grad_logits, [logit.shape for logit in logits]), nonfinite


def _gradient_form(
    weights: Sequence[Tensor],
    indices: Sequence[int],
    streams: Sequence[int],
    options: NoiseOptions,
    dtypes: tuple[torch.dtype, ...],
) -> tuple[Any, Plan, Config]:
    """Kernel, plan and config of the backward's first launch for ``weights[indices]``."""
    group_size = options.group_size
    config = config_of(options, weight=TYPES[dtypes[0]], grad=TYPES[dtypes[1]])
    if not divides_step(group_size):
        plan = ragged_plan(weights, indices, group_size, streams)
        return ragged_backward_kernel, plan, config._replace(**ragged_steps(group_size))
    plan = launch_plan(weights, indices, group_size, TILE, streams)
    return backward_kernel, plan, config._replace(**tile_steps(group_size))


def _launch_gradients(
    kernel: Any,
    plan: Plan,
    tables: Tables,
    given: tuple[Tensor, Tensor, Tensor],
    gradients: Gradients,
    options: NoiseOptions,
    config: Config,
) -> None:
    """Both launches of the backward; ``given``: key, ranges and extremes."""
    key, ranges, extremes = given
    rule = rule_of(options.min_bits, options.max_bits, options.param)
    programs = sum(plan.programs)
    partial = torch.empty((programs, PARTIAL_COLUMNS.value), dtype=torch.float32, device=ranges.device)
    launch(kernel, programs, tables, key, ranges, partial, gradients, rule, CONFIG=config)
    tables = tables._replace(owners_ptr=plan.part_owners)
    config = finish_config(config)
    parts = plan.part_owners.shape[0]
    launch(finish_backward_kernel, parts, tables, ranges, extremes, partial, gradients, rule, CONFIG=config)


def finish_config(config: Config) -> Config:
    """The second launch of the backward knows neither the noise nor the size of groups, only whether there are any."""
    grouped = min(config.group_size, 1)
    same: dict[str, Any] = {"ptx": config.ptx, "per_group": config.per_group, "param": config.param}
    return Config(group_size=grouped, weight=config.weight, grad=config.grad, chunk=CHUNK, **same)
