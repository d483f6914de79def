"""Inputs of the operators' tests: awkward shapes, their logits and widths."""

from __future__ import annotations

import torch
from torch.library import opcheck

import diffq_fast.functional  # noqa: F401  (loads the operators)
from diffq_fast.reference.sizes import group_count

ops = torch.ops.diffq_fast
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PARAMS, KINDS = ("bits", "noise"), ("uniform", "gaussian")
NAN, INF = float("nan"), float("inf")
KEY = torch.tensor(-8198552921648689)


def weights_of(dtype=torch.float32, seed=0):
    """Ragged for each group size used here; an empty one, one element, no dimension, a dense-permuted one."""
    torch.manual_seed(seed)
    shapes = [(5, 7), (0,), (1,), (2, 3), ()]
    permuted = torch.randn(2, 3, 3, 5).to(memory_format=torch.channels_last)
    return [tensor.to(dtype) for tensor in (*(torch.randn(shape) for shape in shapes), permuted)]


def logits_of(weights, group_size, dtype=torch.float32):
    return [torch.randn(group_count(weight.numel(), group_size)).to(dtype) for weight in weights]


def widths_of(weights, group_size):
    counts = [group_count(weight.numel(), group_size) for weight in weights]
    return [(torch.arange(groups) % 16 + 1).to(torch.uint8) for groups in counts]


def options_of(group_size, *, min_bits=2.0, max_bits=9.0, param="bits", kind="gaussian", per_group=False):
    return group_size, min_bits, max_bits, param, kind, per_group


def leaves(tensors):
    return [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]


def add_noise(weights, logits, *options, key=KEY, streams=None, nonfinite=None):
    streams = list(range(len(weights))) if streams is None else streams
    return ops.add_noise(weights, logits, key, streams, nonfinite, *options)[0]


def check(operator, *arguments):
    results = opcheck(operator, arguments)
    assert set(results.values()) == {"SUCCESS"}
