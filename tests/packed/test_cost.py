"""What a packed file costs above the method's size formula."""

from __future__ import annotations

import math
import os

import pytest
import torch

from diffq_fast.packed.contents import PackedContents, write_packed
from diffq_fast.packed.report import inspect
from diffq_fast.packed.tensor import pack_weight
from support.packed_examples import kinds


def formula_bits(widths: torch.Tensor, group_size: int, min_bits: int) -> float:
    """Size of a weight by the method's formula, with whole bits: levels, range, 8 bits, table of widths."""
    table = math.ceil(math.log2(1 + int(widths.max()) - min_bits))
    return group_size * int(widths.sum()) + 64 + 8 + len(widths) * table


def spread_widths(groups: int, mean: float, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    bits = mean + spread * torch.randn(groups, generator=generator)
    return bits.round().clamp(2, 15).to(torch.uint8)


@pytest.mark.parametrize(("mean", "spread"), [(4, 1.5), (8, 3), (8, 0.1), (3, 6)])
def test_a_large_weight_costs_at_most_a_tenth_of_a_bit_above_the_formula(mean, spread, tmp_path):
    widths = spread_widths(2**17, mean, spread)
    write_packed(tmp_path / "a", PackedContents({"weight": pack_weight(torch.randn(1024, 1024), widths)}, {}))
    extra = 8 * os.path.getsize(tmp_path / "a") - formula_bits(widths, 8, 2)
    assert extra / 2**20 <= 0.1


@pytest.mark.parametrize("spread", [0, 1, 3, 20])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_small_layer_costs_at_most_3_percent_and_1_kb_above_the_formula(spread, with_bias, tmp_path):
    widths = spread_widths(384, 8, spread)
    packed = {"layers.0.weight": pack_weight(torch.randn(48, 64), widths)}
    plain = {"layers.0.bias": torch.randn(48)} if with_bias else {}
    info = {
        "class": "DiffQuantizer",
        "arguments": {"group_size": 8, "min_size": 0, "min_bits": 2, "max_bits": 15},
    }
    write_packed(tmp_path / "a", PackedContents(packed, plain, quantizer=info))
    formula = formula_bits(widths, 8, 2) / 8 + 4 * 48 * with_bias
    assert os.path.getsize(tmp_path / "a") <= 1.03 * formula + 1024


def test_the_size_is_the_documented_sum(tmp_path):
    path = kinds().write(tmp_path / "a")
    report = inspect(path)
    assert report.file_bytes == os.path.getsize(path) == sum(report.bytes_by_purpose.values())
