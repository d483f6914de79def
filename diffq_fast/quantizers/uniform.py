"""Uniform quantisation at one number of bits: after training, or in training with a straight-through gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..legacy import entries as legacy_entries
from ..reference.even_levels import dequantize_evenly, level_count, quantize_evenly
from .arguments import check_number, remembers_arguments
from .attachment import Draw
from .base import BaseQuantizer
from .export import ExportedWeight
from .registry import Levels, Scheme, register
from .selection import QuantizedParameter, untied
from .stored_state import refuse_other_bits


class UniformQuantizer(BaseQuantizer):
    """Quantises every weight to floor(2**bits) levels between its minimum and its maximum.

    In eval mode the model sees the quantised weights. In train mode it sees the float weights, or with ``qat`` the
    quantised ones, with the gradient passed on to the float weights unchanged (straight through). Nothing is learned,
    so nothing has to be set up; several of these may be on one model, with ``exclude`` dividing the weights.

    Args:
        model: any module; it is not replaced.
        bits: 1 … 15, may be fractional.
        min_size: parameters of up to this many MB (as float32) are not quantised.
        float16: keep the parameters that are not quantised in half precision, in eval and export.
        qat: quantise in training too.
        exclude: fnmatch patterns of parameters to leave alone, against ``name`` and ``"<module name>.<name>"``.
        detect_bound: a tensor used at several places is stored once.

    Raises:
        ValueError: ``bits`` outside 1 … 15.
    """

    @remembers_arguments
    def __init__(
        self,
        model: nn.Module,
        bits: float = 8.0,
        min_size: float = 0.01,
        float16: bool = False,
        qat: bool = False,
        exclude: Sequence[str] = [],
        detect_bound: bool = True,
    ) -> None:
        if not 1 <= check_number("UniformQuantizer", "bits", bits) <= 15:
            raise ValueError(f"UniformQuantizer: bits must be between 1 and 15, got {bits}")
        super().__init__(model, min_size, float16, exclude, detect_bound)
        self.bits, self.qat = bits, qat
        self._count = int(level_count(bits))
        self.attach()

    # -- optimizer: nothing is learned ---------------------------------------------------------------------------------

    def setup_optimizer(self, optimizer: torch.optim.Optimizer | None = None, *args: Any, **kwargs: Any) -> None:
        """Do nothing: there is nothing to learn. For code that treats all quantizers alike."""

    def clear_optimizer(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Do nothing, see :meth:`setup_optimizer`."""

    # -- weights -------------------------------------------------------------------------------------------------------

    def training_draw(self) -> Draw | None:
        return Draw(self._training_weights) if self.qat else None

    def _training_weights(self, indices: Sequence[int]) -> list[Tensor]:
        entries = [self.selection.quantised[index] for index in indices]
        owners = untied(entries)
        made = dict(zip(owners, self._straight_through(owners), strict=True))
        return [made[entry.original] for entry in entries]

    def _straight_through(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        """The quantised weights, with the gradients of the weights.

        ``w + (quantised - w)`` in float32, which may differ from the quantised weight in the last bit: diffq's values.
        """
        with torch.no_grad():
            rounded = [each.to(torch.float32) for each in self.eval_weights(entries)]
        visible = [entry.visible for entry in entries]
        weights = [each.to(torch.float32) for each in visible]
        return [
            (weight + (quantised - weight).detach()).to(seen.dtype)
            for weight, quantised, seen in zip(weights, rounded, visible, strict=True)
        ]

    def eval_weights(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        weights = self.storable_together(entries)
        return [self._rounded(weight, entry.param.dtype) for weight, entry in zip(weights, entries, strict=True)]

    def _rounded(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ranges = functional.weight_range([weight])
        if self._is_whole:
            width = self._width(weight.device)
            return functional.fake_quantize([weight], [width], ranges, group_size=0, dtype=dtype)[0]
        lo, hi = ranges[0]
        count = ranges.new_tensor(float(self._count))
        return dequantize_evenly(quantize_evenly(weight, count, lo, hi), count, lo, hi, dtype)

    def _levels(self, entry: QuantizedParameter, ranges: Tensor) -> Tensor:
        """A weight's levels, int32, in its shape; ``ranges`` is float32 ``[1, 2]``."""
        weight = self.storable(entry)
        if self._is_whole:
            return functional.quantize([weight], [self._width(weight.device)], ranges, group_size=0)[0]
        lo, hi = ranges[0]
        return quantize_evenly(weight, ranges.new_tensor(float(self._count)), lo, hi)

    @property
    def _is_whole(self) -> bool:
        """Whether the levels are those of a whole number of bits."""
        return self._count & (self._count - 1) == 0

    def _width(self, device: torch.device) -> Tensor:
        """The bits that a level takes, as the widths of a weight that is one group: uint8 ``[1]``."""
        return torch.full((1,), (self._count - 1).bit_length(), dtype=torch.uint8, device=device)

    # -- size and export -----------------------------------------------------------------------------------------------

    def quantised_bits(self, exact: bool) -> Tensor | float:
        return sum(self.bits * entry.param.numel() + 64 for entry in self.selection.originals)

    def misfit(self, packed: Any) -> tuple[str | None, str] | None:
        widths = packed.widths.unique().tolist()
        count = packed.level_count or 1 << widths[0]
        fits = packed.range_scope == "tensor" and len(widths) == 1 and count == self._count
        return None if fits else (None, f"has bits={self.bits} ({self._count} levels)")

    def exported(self, entry: QuantizedParameter, value: Tensor, ranges: Tensor) -> ExportedWeight:
        exported = ExportedWeight(entry.full_name, value, self._width(value.device), 0, "tensor", ranges=ranges)
        if self._is_whole:
            return exported
        return exported._replace(levels=self._levels(entry, ranges), ranges=ranges[0], level_count=self._count)

    def stored_entry(self, entry: QuantizedParameter, ranges: Tensor, packed: bool, torch_pack: bool) -> Any:
        levels = self._levels(entry, ranges)
        options: dict[str, Any] = {"packed": packed, "torch_pack": torch_pack, "name": entry.full_name}
        return legacy_entries.encode_uniform_entry(levels, tuple(ranges[0].tolist()), bits=self.bits, **options)

    def decoding_arguments(self, stated: Mapping[str, Any]) -> Mapping[str, Any]:
        refuse_other_bits(type(self).__name__, self.bits, stated.get("bits", self.bits))
        return {"bits": self.bits}


def _decode(stored: Any, shape: Sequence[int], arguments: Mapping[str, Any], name: str) -> Levels:
    bits = arguments.get("bits", 8.0)
    levels, ranges = legacy_entries.decode_uniform_entry(stored, shape, bits=bits, name=name)
    count = int(level_count(bits))
    width = (count - 1).bit_length()
    widths = torch.full((1,), width, dtype=torch.uint8, device="cpu")
    stated = None if count == 1 << width else count
    return Levels(levels, widths, torch.tensor([ranges], dtype=torch.float32, device="cpu"), 0, "tensor", stated)


register(
    Scheme(
        UniformQuantizer,
        diffq_name="diffq.uniform.UniformQuantizer",
        decode=_decode,
        recognises=lambda entry: len(entry) == 2 and isinstance(entry[1], list | tuple),
    )
)
