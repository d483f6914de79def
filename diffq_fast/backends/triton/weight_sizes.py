"""Launchers of what learned bits take in a file, and of the gradients; meanings: ``diffq_fast/_ops.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...reference.options import PARAMS, unknown_choice
from .. import default
from .arguments import Config, SizeBounds, rule_of
from .launching import CHUNK, PART_STEP, PTX, TILE, contiguous, launch, launch_plan, supported
from .tables import Plan, pieces_of
from .weight_sizes_kernels import PART_COLUMNS, bits_parts_kernel, finish_sizes_kernel, sizes_backward_kernel


def weight_sizes(logits, counts, group_size, min_bits, max_bits, param, extra_bits):
    """Two launches."""
    if not supported(logits):
        return default.weight_sizes(logits, counts, group_size, min_bits, max_bits, param, extra_bits)
    logits = contiguous(logits, torch.float32)
    plan, config = _plan_and_config(logits, counts, param)
    tables, rule = plan.tables(logits), rule_of(min_bits, max_bits, param)
    programs = sum(plan.programs)
    parts = torch.empty((programs, PART_COLUMNS.value), dtype=torch.float32, device=logits[0].device)
    sizes = torch.empty(len(logits), dtype=torch.float32, device=logits[0].device)
    launch(bits_parts_kernel, programs, tables, parts, rule, CONFIG=config)
    bounds = SizeBounds(float(min_bits), float(extra_bits))
    size = group_size or max(counts)
    launch(finish_sizes_kernel, len(logits), tables, parts, sizes, size, bounds, rule, CONFIG=config)
    return sizes


def weight_sizes_backward(grads, logits, counts, group_size, min_bits, max_bits, param):
    """One launch."""
    if not supported(logits):
        return default.weight_sizes_backward(grads, logits, counts, group_size, min_bits, max_bits, param)
    shapes, logits = [logit.shape for logit in logits], contiguous(logits, torch.float32)
    plan, config = _plan_and_config(logits, counts, param)
    made = torch.empty(sum(shape.numel() for shape in shapes), dtype=torch.float32, device=grads.device)
    arguments = (
        grads.to(torch.float32).contiguous(),
        made,
        group_size or max(counts),
        rule_of(min_bits, max_bits, param),
    )
    launch(sizes_backward_kernel, sum(plan.programs), plan.tables(logits), *arguments, CONFIG=config)
    return pieces_of(made, shapes)


def _plan_and_config(logits: Sequence[Tensor], counts: Sequence[int], param: str) -> tuple[Plan, Config]:
    if param not in PARAMS:
        raise unknown_choice("weight_sizes", "param", param, PARAMS)
    plan = launch_plan(logits, range(len(logits)), 1, TILE, counts)
    return plan, Config(ptx=PTX, param=param, tile=TILE, part_step=PART_STEP, chunk=CHUNK)
