"""The rule by which logits become widths, and the logits that give wanted widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from .bits import MAX_WHOLE_BITS, bits_from_logits, logits_from_bits, whole_bits
from .options import PARAMS

MOST_BITS = 1000  # what any of a rule's numbers of bits may be


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

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> LogitRule:
        """The rule of a quantizer with these arguments, defaults where it has none."""
        return cls(**{each.name: arguments[each.name] for each in fields(cls) if each.name in arguments})

    def problem(self) -> str | None:
        """What is impossible about the rule, or None: its values may come from a file."""
        numbers = (self.min_bits, self.max_bits, self.extra_bits)
        if not all(type(number) in (int, float) and abs(number) <= MOST_BITS for number in numbers):
            return f"min_bits, max_bits and extra_bits must be numbers, got {numbers}"
        if not 0 < self.min_bits < self.max_bits <= 32:
            return f"expected 0 < min_bits < max_bits <= 32, got {self.min_bits} and {self.max_bits}"
        if self.param not in PARAMS or not isinstance(self.suffix, str) or not self.suffix:
            return f"param must be one of {PARAMS} and suffix a text, got {self.param!r:.40}"
        return None

    # -- how logits and a packed weight belong together, see quantizers.registry.Rule --------------------------------

    noun: ClassVar[str] = "logits"

    @property
    def reach(self) -> str:
        """Which bits it gives."""
        return f"bits strictly between {self.min_bits:g} and {self.max_bits:g}"

    def belongs_to(self, packed: Any) -> bool:
        """Logits belong to all weights that have neither a scale nor steps."""
        return packed.range_scope not in ("scale", "steps")

    def shape(self, packed: Any) -> tuple[int, ...]:
        """Of the logits: one for each group."""
        return (len(packed.widths),)

    def misfit(self, packed: Any, shape: list[int]) -> str:
        """Why logits of another shape are none for the weight."""
        groups = f"the file {len(packed.widths)} groups of {packed.group_size}"
        return f"the model has {shape} logits, {groups}; use the same group_size"

    def learned(self, packed: Any) -> Tensor:
        """See :meth:`logits`."""
        return self.logits(packed.widths)

    def changed(self, packed: Any, learned: Tensor) -> int:
        """How many groups would have another width with these logits."""
        return int((self.widths(learned) != packed.widths).sum())

    def differing(self, stated: Any) -> dict[str, Any]:
        """The arguments that make other bits of a logit than those of the rule ``stated`` do."""
        other = stated if isinstance(stated, LogitRule) else LogitRule()
        names = ("min_bits", "max_bits", "extra_bits", "param")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(other, name)}
