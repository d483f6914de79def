"""What weights take in a file with learned bits, and the gradient, through the compiled core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import default
from .loading import core
from .registration import kernel
from .tensors import PARAMS, addresses, contiguous, empty_like, guard_groups, guard_tensors, supported


@kernel
def weight_sizes(logits, counts, group_size, min_bits, max_bits, param, extra_bits):
    _guard("weight_sizes", logits, counts, group_size)
    if not supported(logits):
        return default.weight_sizes(logits, counts, group_size, min_bits, max_bits, param, extra_bits)
    logits = contiguous(logits, torch.float32)
    sizes = torch.empty(len(logits), dtype=torch.float32, device="cpu")
    learned = addresses(logits), counts, group_size, min_bits, max_bits, PARAMS[param], extra_bits
    core.weight_sizes(learned, sizes.data_ptr(), torch.get_num_threads())
    return sizes


@kernel
def weight_sizes_backward(grads, logits, counts, group_size, min_bits, max_bits, param):
    who = "weight_sizes_backward"
    _guard(who, logits, counts, group_size)
    guard_tensors(who, [grads])
    guard_groups(who, "grads", [grads], [len(logits)], 1)
    if not supported([grads], logits):
        return default.weight_sizes_backward(grads, logits, counts, group_size, min_bits, max_bits, param)
    grads, logits = grads.to(torch.float32).contiguous(), contiguous(logits, torch.float32)
    grad_logits = empty_like(logits)
    learned = addresses(logits), counts, group_size, min_bits, max_bits, PARAMS[param], 0.0
    core.weight_sizes_backward(learned, grads.data_ptr(), addresses(grad_logits), torch.get_num_threads())
    return grad_logits


def _guard(who: str, logits: Sequence[Tensor], counts: Sequence[int], group_size: int) -> None:
    """One logit for each group of each weight."""
    guard_tensors(who, logits)
    if min(counts, default=0) < 0:
        raise ValueError(f"{who}: counts must not be negative, got {min(counts)}")
    guard_groups(who, "logits", logits, counts, group_size)
