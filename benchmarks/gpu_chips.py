"""What predictions of GPU kernels start from: the chips' ceilings, and the bytes that each kernel moves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Chip:
    """Ceilings. ``copy``: what a copy reaches, in TB/s: H200 measured 4.3 of 4.8, H100 and A100 scaled alike, B200
    assumed. ``teraflops``: dense bfloat16 products (data sheets). ``fma_lanes``: of a multiprocessor and clock (CUDA
    programming guide)."""

    target: str  # what it is compiled for
    multiprocessors: int
    gigahertz: float
    copy: float
    teraflops: float
    fma_lanes: int = 128

    def rate(self, lanes: int) -> float:
        """Thousand million lane-instructions a second."""
        return self.multiprocessors * self.gigahertz * lanes


CHIPS = {
    "H100 SXM": Chip("sm_90", 132, 1.98, 3.0, 989),
    "H200": Chip("sm_90", 132, 1.98, 4.3, 989),
    "B200": Chip("sm_100", 148, 1.965, 7.2, 2250),
    "A100 80GB": Chip("sm_80", 108, 1.41, 1.83, 312, fma_lanes=64),
}
ISSUED = 128  # lane-instructions of a multiprocessor and clock
# Bytes per weight. Logits and their gradients: 4 bytes each per group; where threads load the same again (weights and
# gradients of ragged groups too), it counts once. One launch: for weights that L2 holds until their noise. Planes: of 8
# bits; packed rows: of 4 bits, their vectors in L2. Of sizes: per group, and of their sums per part.
BYTES = {
    "range": 4.0,
    "forward uniform g=8 to fp32": 8.5,
    "forward gaussian g=8 to fp32": 8.5,
    "forward uniform g=8 to bf16": 6.5,
    "forward gaussian g=8 to bf16": 6.5,
    "forward uniform g=8 to bf16, range per group": 7.5,
    "forward uniform g=8 to fp32, range per group": 9.5,
    "forward uniform g=1 to fp32": 12.0,
    "forward gaussian g=0 to fp32": 8.0,
    "forward gaussian g=7 to fp32": 8.571,
    "forward gaussian g=4096 to fp16": 6.0,
    "one launch: forward uniform g=8 to fp32": 8.5,
    "one launch: forward uniform g=8 to bf16": 6.5,
    "one launch: forward gaussian g=0 to fp32": 8.0,
    "backward uniform g=8 from fp32": 9.0,
    "backward gaussian g=8 from fp32": 9.0,
    "backward uniform g=8 from bf16": 7.0,
    "backward gaussian g=8 from bf16": 7.0,
    "backward uniform g=1 from fp32": 16.0,
    "uniform noise of one step, g=64": 8.0625,
    "uniform noise of one step, g=64, to bf16": 6.0625,
    "sums of uniform noise, g=64": 4.0625,
    "sums of uniform noise, g=64, from bf16": 2.0625,
    "quantise + pack, 4 bits of one width": 4.5,
    "unpack + dequantise, 4 bits of one width": 4.5,
    "quantise + pack, 8 bits": 6.0,
    "unpack + dequantise, 8 bits": 6.0,
    "range per group": 5.0,
    "noise": 4.0,
    "quantise": 8.125,
    "fake quantise": 8.125,
    "pack": 4.625,
    "unpack": 4.625,
    "pack planes": 3.0,
    "quantise + pack planes": 6.0,
    "unpack planes": 3.0,
    "ragged forward": 9.714,
    "ragged forward to bf16": 7.714,
    "ragged backward": 14.286,
    "ragged backward from bf16": 12.286,
    "finish backward": 4.0,
    "finish backward from bf16": 4.0,
    "sums of uniform noise, pieces of groups": 4.0,
    "multiply packed rows, 1 vectors": 0.57,
    "multiply packed rows, 8 vectors": 0.633,
    "unpack packed rows": 4.57,
    "bits of groups, bits": 4.0,
    "bits of groups, noise": 4.0,
    "sizes of weights, bits": 12.0,
    "sizes of weights, noise": 12.0,
    "gradients of sizes, bits": 8.0,
    "gradients of sizes, noise": 8.0,
}
