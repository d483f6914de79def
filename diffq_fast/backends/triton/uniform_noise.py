"""Launchers of uniform noise of one step and of the steps' gradients; meanings and shapes: ``diffq_fast/_ops.py``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...reference.sizes import group_count
from .. import default
from .arguments import Config
from .launching import (
    PART_STEP,
    PTX,
    TILE,
    TYPES,
    by_dtype,
    contiguous,
    launch,
    launch_plan,
    supported,
    take,
    tile_steps,
)
from .tables import outputs_of, pieces_of, plan_of
from .uniform_noise_kernels import group_sums_kernel, piece_sums_kernel, uniform_noise_kernel


def add_uniform_noise(weights, steps, key, streams, group_sizes, dtype=None):
    """One launch for each dtype and group size."""
    if not supported(weights) or not _are_single(steps) or not (dtype is None or dtype in TYPES):
        return default.add_uniform_noise(weights, steps, key, streams, group_sizes, dtype)
    weights, steps = contiguous(weights), contiguous(steps)
    noisy: list[Tensor] = list(weights)
    for indices, own, group_size in _alike(weights, group_sizes):
        plan = launch_plan(weights, indices, group_size, TILE, streams)
        buffer, outputs = outputs_of(plan, dtype or own)
        sizes = tile_steps(group_size, (dtype or own).itemsize < 4)
        config = Config(ptx=PTX, group_size=group_size, weight=TYPES[own], **sizes)
        tables = plan.tables(take(weights, indices), take(steps, indices))
        launch(uniform_noise_kernel, sum(plan.programs), tables, key, buffer, CONFIG=config)
        for index, output in zip(indices, outputs, strict=True):
            noisy[index] = output
    return noisy


def add_uniform_noise_backward(grads, steps, key, streams, group_sizes):
    """One launch for each dtype and group size; large groups are cut into pieces, whose sums have one order."""
    if not supported(grads) or not _are_single(steps):
        return default.add_uniform_noise_backward(grads, steps, key, streams, group_sizes)
    grads = contiguous(grads)
    result: list[Tensor] = list(steps)
    for indices, own, group_size in _alike(grads, group_sizes):
        chosen = take(grads, indices)
        config = Config(ptx=PTX, grad=TYPES[own], **(tile_steps(group_size) | {"part_step": PART_STEP}))
        if group_size and PART_STEP % group_size == 0:
            plan = launch_plan(chosen, range(len(chosen)), group_size, TILE, take(streams, indices))
            counts = [group_count(each.numel(), group_size) for each in chosen]
            sums = torch.empty(sum(counts), dtype=torch.float32, device=key.device)
            config = config._replace(group_size=group_size)
            # Fused, a product would be rounded in one of two neighbouring threads only, and their sums would differ.
            arguments = plan.tables(chosen), key, sums
            launch(group_sums_kernel, sum(plan.programs), *arguments, CONFIG=config, enable_fp_fusion=False)
            made = pieces_of(sums, [torch.Size((count,)) for count in counts])
        else:
            made = _sums_of_pieces(chosen, key, take(streams, indices), group_size, config._replace(whole_step=0))
        for index, each in zip(indices, made, strict=True):
            result[index] = each
    return result


def _sums_of_pieces(
    grads: Sequence[Tensor], key: Tensor, streams: Sequence[int], group_size: int, config: Config
) -> list[Tensor]:
    """The sums of large or ragged groups: those of pieces first."""
    made: dict[int, Tensor] = {}
    for size, members in _by_size(grads, group_size):
        pieces = -(-size // TILE)
        groups = [group_count(grads[member].numel(), size) for member in members]
        own = [grads[member] for member in members]
        begins = [0] * len(own)
        plan = plan_of(own, take(streams, members), range(len(own)), begins, [each * pieces for each in groups])
        sums = torch.empty(sum(groups) * pieces, dtype=torch.float32, device=key.device)
        launch(piece_sums_kernel, len(sums), plan.tables(own), key, sums, size, CONFIG=config)
        totals = sums.view(-1, pieces).sum(1) if pieces > 1 else sums
        made.update(zip(members, totals.split(groups), strict=True))
    return [made[index] for index in range(len(grads))]


def _by_size(grads: Sequence[Tensor], group_size: int) -> Iterator[tuple[int, list[int]]]:
    """The weights whose groups are equally large."""
    sizes = [min(group_size or each.numel(), max(each.numel(), 1)) or 1 for each in grads]
    for size in dict.fromkeys(sizes):
        yield size, [index for index, own in enumerate(sizes) if own == size]


def _alike(weights: Sequence[Tensor], group_sizes: Sequence[int]) -> Iterator[tuple[list[int], torch.dtype, int]]:
    """The indices of the weights of one dtype and group size."""
    for indices, (dtype,) in by_dtype(weights):
        for group_size in dict.fromkeys(take(group_sizes, indices)):
            yield [index for index in indices if group_sizes[index] == group_size], dtype, group_size


def _are_single(steps: Sequence[Tensor]) -> bool:
    return all(each.dtype == torch.float32 for each in steps)
