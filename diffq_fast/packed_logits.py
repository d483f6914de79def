"""Logits for widths: what lets training go on from a packed file that has no logits in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bits import MAX_WHOLE_BITS, PARAMS, bits_from_logits, logits_from_bits, whole_bits
from .packed_header import file_error
from .packed_layout import learned_suffix


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


def read_rule(path: str, quantizer: Mapping[str, Any]) -> LogitRule:
    """The rule of the file's quantizer, defaults where it states none; PackedFileError if impossible."""
    arguments = quantizer["arguments"]
    given = {name: arguments[name] for name in LogitRule.__dataclass_fields__ if name in arguments}
    rule = LogitRule(**given | {"suffix": learned_suffix(quantizer)})
    numbers = (rule.min_bits, rule.max_bits, rule.extra_bits)
    if not all(type(number) in (int, float) and abs(number) <= 1000 for number in numbers):
        raise file_error(path, "quantizer", f"min_bits, max_bits and extra_bits must be numbers, got {numbers}")
    if not 0 < rule.min_bits < rule.max_bits <= 32:
        bounds = f"got {rule.min_bits} and {rule.max_bits}"
        raise file_error(path, "quantizer", f"expected 0 < min_bits < max_bits <= 32, {bounds}")
    if rule.param not in PARAMS or not isinstance(rule.suffix, str) or not rule.suffix:
        raise file_error(path, "quantizer", f"param must be one of {PARAMS} and suffix a text, got {rule.param!r:.40}")
    return rule
