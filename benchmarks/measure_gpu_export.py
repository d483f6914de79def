"""Quantise + pack and back on a GPU: G11 of the targets. ``python measure_gpu_export.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from gpu_timing import interleaved, print_rows, row, store

import diffq_fast.functional  # noqa: F401  (registers the operators)
from diffq_fast.reference.sizes import stream_words

DEVICE = "cuda"
COUNT = 2**26
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


def main() -> None:
    rows = [line for width in (4, 8) for line in of_width(width)]
    print_rows(rows)
    store(rows, Path(sys.argv[1]) / "gpu_export.json")


if __name__ == "__main__":
    main()
