"""LSQ: quantisation at one number of bits with a learned scale (Esser et al., "Learned Step Size Quantization",
ICLR 2020), in the form that diffq 0.2.4 has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..legacy import entries as legacy_entries
from .base import remembers_arguments
from .export import ExportedWeight, refuse_other_bits
from .learned import LearnedQuantizer
from .replay import Maker
from .selection import QuantizedParameter, untied

# An all-zero weight starts with the scale of one of this mean magnitude: with a scale of 0 it could never be trained.
LEAST_MEAN = 0.01


class LSQ(LearnedQuantizer):
    """Trains a model whose weights are integers of ``bits`` bits times one learned scale each.

    In train and eval mode alike every forward of ``model`` sees ``index * scale``, with -2**(bits-1) <= index <
    2**(bits-1); gradients go straight through the rounding. The stored parameters never change. The scales are 0-dim
    parameters ``<name><suffix>`` of the owning modules.

    Args:
        model: any module; it is not replaced.
        bits: 2 … 15, a whole number.
        min_size: parameters of up to this many MB (as float32) are not quantised.
        float16: keep the parameters that are not quantised in half precision, in eval and export.
        suffix: of the scales' names.
        exclude: fnmatch patterns of parameters to leave alone, against ``name`` and ``"<module name>.<name>"``.
        detect_bound: a tensor used at several places has one scale and is stored once.

    Raises:
        ValueError: ``bits`` is not a whole number from 2 to 15.
        RuntimeError: a parameter's name already ends in ``suffix``.
    """

    @remembers_arguments
    def __init__(
        self,
        model: nn.Module,
        bits: int = 8,
        min_size: float = 0.01,
        float16: bool = False,
        suffix: str = "_lsq",
        exclude: Sequence[str] = [],
        detect_bound: bool = True,
    ) -> None:
        if not 2 <= bits <= 15 or bits != int(bits):
            raise ValueError(
                f"LSQ: bits must be a whole number from 2 to 15 (one bit has no positive index), got {bits}"
            )
        self._refuse_second(model, suffix)
        super().__init__(model, min_size, float16, exclude, detect_bound)
        self.bits = bits
        self._low, self._high = -(2 ** (int(bits) - 1)), 2 ** (int(bits) - 1) - 1
        self._register_learned(suffix, self._initial_scale)
        self._attach()

    def _initial_scale(self, entry: QuantizedParameter) -> Tensor:
        """2 * mean|w| / sqrt(2**(bits - 1)), 0-dim float32."""
        mean = entry.param.detach().to(torch.float32).abs().mean()
        mean = torch.where(mean == 0, torch.full_like(mean, LEAST_MEAN), mean)
        return 2 * mean / (-self._low) ** 0.5

    def setup_optimizer(self, optimizer: torch.optim.Optimizer, **kwargs: Any) -> None:
        """Add the scales to ``optimizer`` as one group, with the optimizer's own learning rate and weight decay.

        Args:
            optimizer: made before this quantizer, so that it does not hold the scales yet.
            kwargs: options of the group.

        Raises:
            RuntimeError: the optimizer holds the scales already, or another one was set up.
        """
        self._add_to_optimizer(optimizer, **kwargs)

    # -- weights -------------------------------------------------------------------------------------------------------

    def _training_maker(self) -> Maker:
        return self._training_weights

    def _training_weights(self, indices: Sequence[int]) -> list[Tensor]:
        entries = [self._qparams[index] for index in indices]
        made = {entry: self._straight_through(entry) for entry in untied(entries)}
        return [made[entry.first] for entry in entries]

    def _straight_through(self, entry: QuantizedParameter) -> Tensor:
        """``index * scale`` in the weight's dtype, differentiable in weight and scale."""
        scale = self._damped_scale(entry)
        ratio = self._ratio(entry.param, scale)
        index = ratio + (ratio.round() - ratio).detach()
        return (index * scale).to(entry.param.dtype)

    def _damped_scale(self, entry: QuantizedParameter) -> Tensor:
        """The scale with its gradient times k = 1 / sqrt(count * high); its value may differ in the last bit."""
        scale = entry.logit.to(torch.float32)
        k = 1 / (entry.param.numel() * self._high) ** 0.5
        return (scale - scale * k).detach() + scale * k

    def _ratio(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The real-valued index, float32; a scale of 0 counts as 1 here, so that 0 / 0 is 0."""
        divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
        return (weight.to(torch.float32) / divisor).clamp(self._low, self._high)

    def _indices(self, entry: QuantizedParameter) -> Tensor:
        """int32, the weight's shape."""
        with torch.no_grad():
            return self._ratio(self._float_value(entry), self._damped_scale(entry)).round().to(torch.int32)

    def _quantized_weights(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        return [
            (self._indices(entry) * entry.logit.detach().to(torch.float32)).to(entry.param.dtype) for entry in entries
        ]

    # -- size and export -----------------------------------------------------------------------------------------------

    def _quantized_bits(self, exact: bool) -> Tensor | float:
        return sum(self.bits * entry.param.numel() + 32 for entry in self._firsts)

    def _ranges_of_sound(self, entries: Sequence[QuantizedParameter]) -> dict[QuantizedParameter, Tensor]:
        ranges = super()._ranges_of_sound(entries)
        for entry in entries:
            if not bool(entry.logit.isfinite()):
                raise ValueError(f"LSQ: the scale of {entry.full_name} is NaN or infinite and cannot be exported")
        return ranges

    def _exported(self, entry: QuantizedParameter, found: Tensor, aliases: list[str]) -> ExportedWeight:
        indices = self._indices(entry)
        return ExportedWeight(
            entry.full_name,
            self._float_value(entry),
            torch.full((1,), int(self.bits), dtype=torch.uint8, device=indices.device),
            0,
            "scale",
            aliases,
            levels=indices - self._low,
            range=entry.logit.detach().to(torch.float32).reshape(1),
        )

    def _encode(self, entry: QuantizedParameter, found: Tensor, packed: bool, torch_pack: bool) -> Any:
        scale = entry.logit.detach().to(torch.float32)
        return legacy_entries.encode_lsq_entry(
            self._indices(entry),
            scale,
            bits=int(self.bits),
            packed=packed,
            torch_pack=torch_pack,
            name=entry.full_name,
        )

    def _decode(self, entry: QuantizedParameter, stored: Any, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        refuse_other_bits(self, self.bits, arguments.get("bits", self.bits))
        indices, scale = legacy_entries.decode_lsq_entry(
            stored, entry.param.shape, bits=int(self.bits), name=entry.full_name
        )
        return indices * scale, scale

    def _set_learned(self, entry: QuantizedParameter, learned: Tensor) -> None:
        entry.logit.copy_(learned)
