"""The rule by which logits become widths, and the logits that give wanted widths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bits import MAX_WHOLE_BITS, bits_from_logits, logits_from_bits, whole_bits


@dataclass(frozen=True)
class LogitRule:
    """How a DiffQuantizer turns logits into widths: the arguments of it that matter here."""

    min_bits: float = 2
    max_bits: float = 15
    extra_bits: float = 0
    param: str = "bits"
    suffix: str = "_diffq"

    def widths(self, logits: Tensor) -> Tensor:
        """uint8 widths of the groups with these logits."""
        return whole_bits(bits_from_logits(logits, self.min_bits, self.max_bits, self.param), self.extra_bits)

    def logits(self, widths: Tensor) -> Tensor:
        """float32 logits that :meth:`widths` turns into `widths` again, or comes as close to as the rule can.

        Of the bits that round to a width, those strictly between min_bits and max_bits are an interval; the
        logit gives the width itself where that lies well inside, else the bits a quarter away from the end.
        """
        wanted = widths.to(torch.float64)
        nearest = wanted - self.extra_bits
        unbounded = torch.full_like(wanted, torch.inf)
        low = torch.where(wanted <= 1, -unbounded, nearest - 0.5).clamp(min=self.min_bits)
        high = torch.where(wanted >= MAX_WHOLE_BITS, unbounded, nearest + 0.5).clamp(max=self.max_bits)
        margin = (high - low) / 4
        inside = torch.minimum(torch.maximum(nearest, low + margin), high - margin)
        edge = (self.max_bits - self.min_bits) / 1000
        bits = torch.where(margin > 0, inside, nearest.clamp(self.min_bits + edge, self.max_bits - edge))
        return logits_from_bits(bits, self.min_bits, self.max_bits, self.param).to(torch.float32)
