"""Predicts each kernel's time from its bytes and its instructions, so that a measurement can be held against
it.

python benchmarks/roofline.py [--static FILE] [--json FILE]

A kernel takes at least as long as its memory traffic at the speed of a copy, and as its instructions at the
rate the chip issues them; the longer of the two is the prediction. Instructions come from
``static_budgets.py``'s table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Chip:
    """Ceilings. Lane-instructions a clock and multiprocessor: 128 issued, 64 of integer products, 16 of
    MUFU (CUDA programming guide); ``copy`` is what a copy reaches, in TB/s: H200 measured 4.3 of 4.8, the
    others scaled alike. ``teraflops``: dense bfloat16 products (data sheets)."""

    multiprocessors: int
    gigahertz: float
    copy: float
    teraflops: float

    def rate(self, lanes: int) -> float:
        """Thousand million lane-instructions a second."""
        return self.multiprocessors * self.gigahertz * lanes


CHIPS = {
    "H200": Chip(132, 1.98, 4.3, 989),
    "H100 SXM": Chip(132, 1.98, 3.0, 989),
    "A100 80GB": Chip(108, 1.41, 1.83, 312),
}
# Of the issue slots, Philox kernels were seen to use 60 % (H20, research on public benchmarks).
ISSUE_EFFICIENCY = 0.6
ISSUED, PRODUCTS, TRANSCENDENTALS = 128, 64, 16
# A transformer's step: 6 operations a weight and token, of which a good step reaches this part of the chip's.
TOKENS, STEP_EFFICIENCY = 8192, 0.4
# Autocast's own casts of a weight (4 read, 2 written) and of its gradient (2 read, 4 written).
CASTS = 12


@dataclass(frozen=True)
class Traffic:
    """Bytes per weight that a kernel moves, g = 8; ``figure``: the bytes its target counts."""

    kernel: str
    bytes: float
    figure: str


# Logits and their gradients: 4 bytes each per 8 weights. One launch: for weights that L2 holds until their noise.
TRAFFIC = [
    Traffic("range", 4, ""),
    Traffic("forward uniform g=8 to fp32", 8.5, "G1"),
    Traffic("forward gaussian g=8 to fp32", 8.5, "G3"),
    Traffic("forward uniform g=8 to bf16", 6.5, "G2"),
    Traffic("forward gaussian g=8 to bf16", 6.5, ""),
    Traffic("forward uniform g=8 to bf16, range per group", 7.5, ""),
    Traffic("forward uniform g=8 to fp32, range per group", 9.5, ""),
    Traffic("forward uniform g=1 to fp32", 12, ""),
    Traffic("one launch: forward uniform g=8 to fp32", 8.5, "G1"),
    Traffic("one launch: forward uniform g=8 to bf16", 6.5, "G2"),
    Traffic("backward uniform g=8 from fp32", 9, "G4"),
    Traffic("backward gaussian g=8 from fp32", 9, ""),
    Traffic("backward uniform g=8 from bf16", 7, "G4"),
    Traffic("backward gaussian g=8 from bf16", 7, ""),
    Traffic("backward uniform g=1 from fp32", 16, ""),
    Traffic("quantise + pack, 4 bits of one width", 4.5, "G11"),
    Traffic("unpack + dequantise, 4 bits of one width", 4.5, "G11"),
    Traffic("quantise + pack, 8 bits", 6, ""),
    Traffic("fake quantise", 8.125, ""),
    Traffic("unpack + dequantise, 8 bits", 6, ""),
]
# The range kernel's main path has no loop to count: two comparisons for the bounds, and for each of them a
# test, a selection, a minimum, a sum; with loads and addresses.
RANGE_INSTRUCTIONS = 15.0


def predict(traffic: Traffic, costs: dict[str, Any], chip: Chip) -> dict[str, Any]:
    """Picoseconds per weight by each ceiling, the prediction, and the fraction of a copy's bandwidth it
    means."""
    instructions = costs["instructions_per_weight"] or RANGE_INSTRUCTIONS
    if traffic.kernel.startswith("one launch"):
        instructions += RANGE_INSTRUCTIONS
    times = {
        "memory": traffic.bytes / chip.copy,
        "issue": 1e3 * instructions / (chip.rate(ISSUED) * ISSUE_EFFICIENCY),
        "integer_products": 1e3 * (costs["integer_product_per_weight"] or 0) / chip.rate(PRODUCTS),
        "transcendentals": 1e3 * (costs["transcendental_per_weight"] or 0) / chip.rate(TRANSCENDENTALS),
    }
    bound = max(times, key=times.__getitem__)
    return {
        "kernel": traffic.kernel,
        "figure": traffic.figure,
        "bytes_per_weight": traffic.bytes,
        "instructions_per_weight": instructions,
        "picoseconds": {name: round(value, 3) for name, value in times.items()},
        "bound": bound,
        "predicted_picoseconds": round(times[bound], 3),
        "of_copy": round(times["memory"] / times[bound], 3),
    }


def targets(rows: list[dict[str, Any]], chip: Chip) -> dict[str, float]:
    """Predictions of whole figures: the bytes a target counts, at the copy's speed, over the predicted
    time."""
    time = {row["kernel"]: row["predicted_picoseconds"] for row in rows}
    forward = time["range"] + time["forward uniform g=8 to fp32"]
    gaussian = time["range"] + time["forward gaussian g=8 to fp32"]
    half = time["range"] + time["forward uniform g=8 to bf16"]
    step = 6 * TOKENS / (STEP_EFFICIENCY * chip.teraflops)
    lowered = half + time["backward uniform g=8 from bf16"] - CASTS / chip.copy
    figures = {
        "G1": 12 / chip.copy / forward,
        "G2": 10 / chip.copy / half,
        "G1 one launch": 8 / chip.copy / time["one launch: forward uniform g=8 to fp32"],
        "G2 one launch": 6 / chip.copy / time["one launch: forward uniform g=8 to bf16"],
        "G3": gaussian / forward,
        "G4": 8 / chip.copy / time["backward uniform g=8 from fp32"],
        "G4 bf16": 6 / chip.copy / time["backward uniform g=8 from bf16"],
        "G8": 100 * lowered / step,
        "G8 own dtype": 100 * (forward + time["backward uniform g=8 from fp32"]) / step,
        "G11 pack": 4.5 / chip.copy / time["quantise + pack, 4 bits of one width"],
        "G11 unpack": 4.5 / chip.copy / time["unpack + dequantise, 4 bits of one width"],
    }
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--static", type=Path, default=RESULTS / "static_triton_3.6.0.json")
    parser.add_argument("--json", type=Path, default=RESULTS / "roofline.json")
    arguments = parser.parse_args()
    table = json.loads(arguments.static.read_text())
    costs = {row["kernel"]: row for row in table["rows"]}
    result: dict[str, Any] = {"triton": table["triton"], "issue_efficiency": ISSUE_EFFICIENCY, "chips": {}}
    for name, chip in CHIPS.items():
        rows = [predict(traffic, costs[traffic.kernel], chip) for traffic in TRAFFIC]
        figures = targets(rows, chip)
        result["chips"][name] = {"ceilings": asdict(chip), "kernels": rows, "figures": figures}
        print(f"{name}: " + ", ".join(f"{figure} {value}" for figure, value in figures.items()))
        for row in rows:
            time = row["predicted_picoseconds"]
            print(f"  {row['kernel']:<46}{time:>7} ps/w  {row['bound']:<16} {row['of_copy']}")
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
