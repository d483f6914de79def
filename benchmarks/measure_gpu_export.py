"""Quantise + pack and back on a GPU, G11 of the targets; and products with weights that stay packed.

python measure_gpu_export.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from gpu_timing import interleaved, print_rows, row, store

import diffq_fast.functional  # noqa: F401  (registers the operators)
from diffq_fast.reference.packed_rows import pack_rows
from diffq_fast.reference.sizes import stream_words

DEVICE = "cuda"
COUNT = 2**26
LAYERS, LAYER = 16, (4096, 4096)  # in turn, so that none stays in the cache
ops = torch.ops.diffq_fast


def of_width(width: int) -> list[dict[str, Any]]:
    """Fractions of the bandwidth of a copy, for ``4 + width / 8`` bytes a weight, all groups of one width."""
    torch.manual_seed(0)
    weight = torch.randn(COUNT, device=DEVICE)
    widths = torch.full((COUNT // 8,), width, dtype=torch.uint8, device=DEVICE)
    ranges, _ = ops.weight_range([weight], 8, False)
    size = stream_words(COUNT, width)
    words = ops.quantize_pack(weight, widths, ranges, 8, False, size)
    (levels,) = ops.quantize([weight], [widths], ranges, 8, False)
    assert torch.equal(ops.unpack(words, widths, 8, COUNT), levels), "words do not hold the levels"
    target = torch.empty_like(weight)
    times = interleaved(
        {
            "copy": lambda: target.copy_(weight),
            "quantise + pack": lambda: ops.quantize_pack(weight, widths, ranges, 8, False, size),
            "unpack + dequantise": lambda: ops.unpack_dequantize(
                words, widths, ranges, 8, False, [COUNT], torch.float32
            ),
            "fake quantise": lambda: ops.fake_quantize([weight], [widths], ranges, 8, False),
        }
    )
    rows = []
    for name in ("quantise + pack", "unpack + dequantise"):
        fraction = (4 + width / 8) / times[name] / (8 / times["copy"])
        what = f"{name}, {width} bits, over copy"
        rows.append(row("G11", what, fraction, ">= 0.75", fraction >= 0.75, milliseconds=times, weights=COUNT))
    return rows


def products(width: int) -> list[dict[str, Any]]:
    """How many times as fast as float32's a product with packed rows is, with a scale for each 64 elements."""
    torch.manual_seed(0)
    widths = torch.full((LAYER[0], LAYER[1] // 64), width, dtype=torch.uint8)
    packed = []
    for _ in range(LAYERS):
        levels = torch.randint(0, 1 << width, LAYER, dtype=torch.int32)
        scales = torch.rand(widths.numel()) + 0.1
        packed.append([each.to(DEVICE) for each in (*pack_rows(levels, widths, 64), scales, torch.empty(0))])
    form = [LAYER[1], 64, 64, 1, 0]
    weights = [ops.unpack_rows(torch.arange(LAYER[0], device=DEVICE), *each, form) for each in packed]
    halves = [weight.bfloat16() for weight in weights]
    rows = []
    for number in (1, 8):
        vectors = torch.randn(number, LAYER[1], device=DEVICE)
        found, expected = ops.packed_linear(vectors, *packed[0], form), vectors @ weights[0].mT
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
        short = vectors.bfloat16()
        times = interleaved(
            {
                "float32": lambda vectors=vectors: [vectors @ weight.mT for weight in weights],
                "bfloat16": lambda short=short: [short @ weight.mT for weight in halves],
                "packed": lambda vectors=vectors: [ops.packed_linear(vectors, *each, form) for each in packed],
            }
        )
        faster = times["float32"] / times["packed"]
        what = f"packed product, {width} bits, {number} vectors, over float32"
        rows.append(row("W1", what, faster, ">= 2.5", faster >= 2.5, milliseconds=times, layers=LAYERS, layer=LAYER))
    return rows


def main() -> None:
    rows = [line for width in (4, 8) for line in of_width(width)]
    rows += [line for width in (2, 4, 8) for line in products(width)]
    print_rows(rows)
    store(rows, Path(sys.argv[1]) / "gpu_export.json")


if __name__ == "__main__":
    main()
