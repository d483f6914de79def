"""A quantizer in one file: signs times one learned scale, the binary weights of XNOR-Net. Nothing else knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffq_fast.quantizers.arguments import remembers_arguments
from diffq_fast.quantizers.attachment import Draw
from diffq_fast.quantizers.base import BaseQuantizer
from diffq_fast.quantizers.export import ExportedWeight
from diffq_fast.quantizers.registry import Scheme, register
from diffq_fast.quantizers.straight_through import straight_through


class SignQuantizer(BaseQuantizer):
    """Every weight is ``-scale`` or ``+scale``, in training and eval; two bits hold its level."""

    @remembers_arguments
    def __init__(self, model, min_size=0.01, exclude=(), suffix="_magnitude"):
        super().__init__(model, min_size, False, exclude, True)
        self.learn(suffix, lambda entry: entry.param.detach().abs().mean())
        self.attach()

    def training_draw(self):
        return Draw(self._training_weights)

    def _training_weights(self, indices):
        entries = [self.selection.quantised[index] for index in indices]
        signs = [straight_through([entry.param], [self._signs(entry)])[0] for entry in entries]
        return [sign * entry.logit for sign, entry in zip(signs, entries, strict=True)]

    def _signs(self, entry):
        return torch.where(entry.param.detach() < 0, -1.0, 1.0)

    def eval_weights(self, entries):
        return [self._signs(entry) * entry.logit.detach() for entry in entries]

    def quantised_bits(self, exact):
        return sum(2 * entry.param.numel() + 32 for entry in self.selection.originals)

    def exported(self, entry, value, ranges):
        width = torch.full((1,), 2, dtype=torch.uint8)
        levels, scale = (self._signs(entry) + 2).to(torch.int32), entry.logit.detach().reshape(1)
        return ExportedWeight(entry.full_name, value, width, 0, "scale", levels=levels, ranges=scale)

    def rule(self):
        return MagnitudeRule(self.suffix)

    def misfit(self, packed):
        return None if packed.range_scope == "scale" else (None, "has a magnitude")


@dataclass(frozen=True)
class MagnitudeRule:
    suffix: str = "_magnitude"
    noun: ClassVar[str] = "magnitude"
    reach: ClassVar[str] = "a magnitude"

    def problem(self):
        return None

    def belongs_to(self, packed: Any):
        return packed.range_scope == "scale"

    def shape(self, packed):
        return ()

    def misfit(self, packed, shape):
        return f"expected one magnitude, the model has {shape}"

    def learned(self, packed):
        return packed.ranges.reshape(())

    def changed(self, packed, learned):
        return 0

    def differing(self, stated):
        return {}


register(Scheme(SignQuantizer, rule=lambda arguments: MagnitudeRule(arguments.get("suffix", "_magnitude"))))
