"""Uniform quantisation at one number of bits: after training, or in training with a straight-through gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..legacy import entries as legacy_entries
from ..reference.even_levels import dequantize_evenly, level_count, quantize_evenly
from .base import BaseQuantizer, remembers_arguments
from .export import ExportedWeight, refuse_other_bits
from .replay import Maker
from .selection import QuantizedParameter, untied


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
        if not 1 <= bits <= 15:
            raise ValueError(f"UniformQuantizer: bits must be between 1 and 15, got {bits}")
        super().__init__(model, min_size, float16, exclude, detect_bound)
        self.bits, self.qat = bits, qat
        self._count = int(level_count(bits))
        self._attach()

    # -- optimizer: nothing is learned ---------------------------------------------------------------------------------

    def setup_optimizer(self, optimizer: torch.optim.Optimizer | None = None, *args: Any, **kwargs: Any) -> None:
        """Do nothing: there is nothing to learn. For code that treats all quantizers alike."""

    def no_optimizer(self) -> None:
        """Do nothing, see :meth:`setup_optimizer`."""

    def clear_optimizer(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Do nothing, see :meth:`setup_optimizer`."""

    def check_unused(self) -> None:
        """Do nothing, see :meth:`setup_optimizer`."""

    # -- weights -------------------------------------------------------------------------------------------------------

    def _training_maker(self) -> Maker | None:
        return self._training_weights if self.qat else None

    def _training_weights(self, indices: Sequence[int]) -> list[Tensor]:
        entries = [self._qparams[index] for index in indices]
        made = {entry: self._straight_through(entry) for entry in untied(entries)}
        return [made[entry.first] for entry in entries]

    def _straight_through(self, entry: QuantizedParameter) -> Tensor:
        """The quantised weight, with the gradient of the weight.

        ``w + (quantised - w)`` in float32, which may differ from the quantised weight in the last bit: diffq's values.
        """
        with torch.no_grad():
            quantised = self._quantized_weights([entry])[0].to(torch.float32)
        weight = entry.param.to(torch.float32)
        return (weight + (quantised - weight).detach()).to(entry.param.dtype)

    def _quantized_weights(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        if not self._is_whole:
            return [self._dequantize(*self._levels(entry), entry.param.dtype) for entry in entries]
        return [self._rounded_at_once(entry) for entry in entries]

    def _rounded_at_once(self, entry: QuantizedParameter) -> Tensor:
        weight = self._storable(entry)
        found, width = functional.weight_range([weight]), self._width(weight.device)
        return functional.fake_quantize([weight], [width], found, group_size=0, dtype=entry.param.dtype)[0]

    def _levels(self, entry: QuantizedParameter, found: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A weight's levels (int32, its shape) and range (float32 ``[1, 2]``), which may be known."""
        weight = self._storable(entry)
        found = functional.weight_range([weight]) if found is None else found
        if self._is_whole:
            return functional.quantize([weight], [self._width(weight.device)], found, group_size=0)[0], found
        lo, hi = found[0]
        return quantize_evenly(weight, found.new_tensor(float(self._count)), lo, hi), found

    def _dequantize(self, levels: Tensor, found: Tensor, dtype: torch.dtype) -> Tensor:
        if self._is_whole:
            return functional.dequantize([levels], [self._width(levels.device)], found, group_size=0, dtype=dtype)[0]
        lo, hi = found[0]
        return dequantize_evenly(levels, found.new_tensor(float(self._count)), lo, hi, dtype)

    @property
    def _is_whole(self) -> bool:
        """Whether the levels are those of a whole number of bits."""
        return self._count & (self._count - 1) == 0

    def _width(self, device: torch.device) -> Tensor:
        """The bits that a level takes, as the widths of a weight that is one group: uint8 ``[1]``."""
        return torch.full((1,), (self._count - 1).bit_length(), dtype=torch.uint8, device=device)

    # -- size and export -----------------------------------------------------------------------------------------------

    def _quantized_bits(self, exact: bool) -> Tensor | float:
        return sum(self.bits * entry.param.numel() + 64 for entry in self._qparams if entry.other is None)

    def _exported(self, entry: QuantizedParameter, found: Tensor, aliases: list[str]) -> ExportedWeight:
        weight = self._float_value(entry)
        exported = ExportedWeight(entry.full_name, weight, self._width(weight.device), 0, "tensor", aliases)
        if self._is_whole:
            return exported._replace(range=found)
        levels, found = self._levels(entry, found)
        return exported._replace(levels=levels, range=found[0], level_count=self._count)

    def _encode(self, entry: QuantizedParameter, found: Tensor, packed: bool, torch_pack: bool) -> Any:
        levels, found = self._levels(entry, found)
        lo, hi = found[0].tolist()
        return legacy_entries.encode_uniform_entry(
            levels, lo, hi, bits=self.bits, packed=packed, torch_pack=torch_pack, name=entry.full_name
        )

    def _decode(self, entry: QuantizedParameter, stored: Any, arguments: dict[str, Any]) -> tuple[Tensor, None]:
        refuse_other_bits(self, self.bits, arguments.get("bits", self.bits))
        levels, found = legacy_entries.decode_uniform_entry(
            stored, entry.param.shape, bits=self.bits, name=entry.full_name
        )
        return self._dequantize(levels, torch.tensor([found], dtype=torch.float32), entry.param.dtype), None
