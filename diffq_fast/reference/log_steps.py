"""Steps on a logarithmic scale, sixteen to the octave: the steps that a packed file can hold."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS_PER_OCTAVE = 16
LOWEST_STEP_CODE, HIGHEST_STEP_CODE = -1600, 1599


def steps_from_codes(codes: Tensor) -> Tensor:
    """float32 steps ``2 ** (codes / 16)``, exactly as ``docs/packed_format.md`` has them.

    2**(r/16) rounded to float32, times a power of two. Every reader and every device gives the same bits.
    """
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"steps_from_codes: codes must be integers, got {codes.dtype}")
    fractions = [2 ** (r / STEPS_PER_OCTAVE) for r in range(STEPS_PER_OCTAVE)]
    table = torch.tensor(fractions, dtype=torch.float32, device=codes.device)
    codes = codes.to(torch.int32)
    octave = torch.div(codes, STEPS_PER_OCTAVE, rounding_mode="floor")
    return torch.ldexp(table[(codes - STEPS_PER_OCTAVE * octave).long()], octave)


def codes_from_steps(steps: Tensor) -> Tensor:
    """int16 codes of the nearest steps on the logarithmic scale; the lowest one for what is no positive number."""
    codes = (torch.log2(steps.detach().to(torch.float32)) * STEPS_PER_OCTAVE).round()
    codes = torch.nan_to_num(codes, nan=LOWEST_STEP_CODE)
    return codes.clamp(LOWEST_STEP_CODE, HIGHEST_STEP_CODE).to(torch.int16)
