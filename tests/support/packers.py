"""The golden levels and planes of diffq's two packers, and levels at random."""

import torch
from safetensors.torch import load_file

from support.paths import GOLDEN

PACKERS = load_file(GOLDEN / "packers.safetensors")
COUNTS = [0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 5000]


def random_levels(count, nbits, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**nbits, (count,), generator=generator, dtype=torch.int64)
