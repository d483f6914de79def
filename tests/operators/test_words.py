"""Levels packed into 32-bit words: the operators against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast import functional
from support.operators import check, ops, weights_of, widths_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("per_group", [False, True])
def test_opcheck_packing_operators(per_group, index):
    weight = weights_of()[index]
    (widths,) = widths_of([weight], 4)
    found, _ = ops.weight_range([weight], 4, per_group)
    (levels,) = ops.quantize([weight], [widths], found, 4, per_group)
    count = functional.packed_word_count(widths, weight.numel(), 4)
    check(ops.pack.default, levels, widths, 4, count)
    words = ops.pack(levels, widths, 4, count)
    check(ops.unpack.default, words, widths, 4, weight.numel())
    check(ops.quantize_pack.default, weight, widths, found, 4, per_group, count)
    shape = list(weight.shape)
    check(ops.unpack_dequantize.default, words, widths, found, 4, per_group, shape, torch.float32)
