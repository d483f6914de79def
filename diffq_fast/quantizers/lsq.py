"""LSQ: quantisation at one number of bits with a learned scale (Esser et al., "Learned Step Size Quantization",
ICLR 2020), in the form that diffq 0.2.4 has it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..legacy import entries as legacy_entries
from .arguments import check_number, remembers_arguments
from .attachment import Draw
from .base import BaseQuantizer
from .export import ExportedWeight
from .gathering import gathered_for_forward, whole_together
from .learned_parameters import LearnedParameters
from .registry import Levels, Scheme, register
from .selection import QuantizedParameter, small_families, untied
from .shards import whole
from .stored_state import refuse_other_bits

# An all-zero weight starts with the scale of one of this mean magnitude: with a scale of 0 it could never be trained.
LEAST_MEAN = 0.01


class LSQ(BaseQuantizer):
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
        if not 2 <= check_number("LSQ", "bits", bits) <= 15 or bits != int(bits):
            raise ValueError(
                f"LSQ: bits must be a whole number from 2 to 15 (one bit has no positive index), got {bits}"
            )
        LearnedParameters.refuse_second(type(self).__name__, model, suffix)
        super().__init__(model, min_size, float16, exclude, detect_bound)
        self.bits = bits
        self._low, self._high = -(2 ** (int(bits) - 1)), 2 ** (int(bits) - 1) - 1
        self.learn(suffix, self._initial_scales().__getitem__)
        self.attach()

    def _initial_scales(self) -> dict[QuantizedParameter, Tensor]:
        """2 * mean|w| / sqrt(2**(bits - 1)) of each weight w, 0-dim float32; small ones of one size together."""
        found: dict[QuantizedParameter, Tensor] = {}
        for members in small_families(self.selection.originals):
            weights = whole_together([entry.param for entry in members])
            means = torch.stack([weight.to(torch.float32).reshape(-1) for weight in weights]).abs().mean(1)
            means = torch.where(means == 0, torch.full_like(means, LEAST_MEAN), means)
            scales = 2 * means / (-self._low) ** 0.5
            found.update((entry, scale.clone()) for entry, scale in zip(members, scales, strict=True))
        return found

    def setup_optimizer(self, optimizer: torch.optim.Optimizer, **kwargs: Any) -> None:
        """Add the scales to ``optimizer`` as one group, with the optimizer's own learning rate and weight decay.

        Args:
            optimizer: made before this quantizer, so that it does not hold the scales yet.
            kwargs: options of the group.

        Raises:
            RuntimeError: the optimizer holds the scales already, another one was set up, or a learning rate
                scheduler was made before that cannot go on with one group more: make it afterwards.
        """
        super().setup_optimizer(optimizer, **kwargs)

    # -- weights -------------------------------------------------------------------------------------------------------

    def training_draw(self) -> Draw:
        return Draw(self._training_weights)

    def _training_weights(self, indices: Sequence[int]) -> list[Tensor]:
        entries = [self.selection.quantised[index] for index in indices]
        owners = untied(entries)
        made = dict(zip(owners, map(self._straight_through, owners, gathered_for_forward(owners)), strict=True))
        return [made[entry.original] for entry in entries]

    def _straight_through(self, entry: QuantizedParameter, learned: Tensor) -> Tensor:
        """``index * scale`` in the weight's dtype, differentiable in weight and scale."""
        weight, scale = entry.visible, self._damped_scale(learned, entry.param.numel())
        ratio = self._ratio(weight, scale)
        index = ratio + (ratio.round() - ratio).detach()
        return (index * scale).to(weight.dtype)

    def _damped_scale(self, learned: Tensor, count: int) -> Tensor:
        """The scale with its gradient times k = 1 / sqrt(count * high); its value may differ in the last bit."""
        scale = learned.to(torch.float32)
        k = 1 / (count * self._high) ** 0.5
        return (scale - scale * k).detach() + scale * k

    def _ratio(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The real-valued index, float32; a scale of 0 counts as 1 here, so that 0 / 0 is 0."""
        divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
        return (weight.to(torch.float32) / divisor).clamp(self._low, self._high)

    def _indices(self, entry: QuantizedParameter) -> Tensor:
        """int32, the weight's shape."""
        return self._indices_of(entry, self.float_value(entry))

    @torch.no_grad()
    def _indices_of(self, entry: QuantizedParameter, weight: Tensor) -> Tensor:
        scale = self._damped_scale(whole(entry.logit), entry.param.numel())
        return self._ratio(weight, scale).round().to(torch.int32)

    def eval_weights(self, entries: Sequence[QuantizedParameter]) -> list[Tensor]:
        indices = map(self._indices_of, entries, self._eval.whole_values(entries))
        return [
            (each * whole(entry.logit).to(torch.float32)).to(entry.param.dtype)
            for each, entry in zip(indices, entries, strict=True)
        ]

    # -- size and export -----------------------------------------------------------------------------------------------

    def quantised_bits(self, exact: bool) -> Tensor | float:
        return sum(self.bits * entry.param.numel() + 32 for entry in self.selection.originals)

    def rule(self) -> ScaleRule:
        return ScaleRule(self.suffix)

    def misfit(self, packed: Any) -> tuple[str | None, str] | None:
        fits = packed.range_scope == "scale" and packed.widths.unique().tolist() == [self.bits]
        return None if fits else (None, f"has bits={self.bits} and a scale")

    def exported(self, entry: QuantizedParameter, value: Tensor, ranges: Tensor) -> ExportedWeight:
        scale, indices = self._sound_scale(entry), self._indices(entry)
        width = torch.full((1,), int(self.bits), dtype=torch.uint8, device=indices.device)
        levels = {"levels": indices - self._low, "ranges": scale.reshape(1)}
        return ExportedWeight(entry.full_name, value, width, 0, "scale", **levels)

    def _sound_scale(self, entry: QuantizedParameter) -> Tensor:
        scale = whole(entry.logit).to(torch.float32)
        if not bool(scale.isfinite()):
            raise ValueError(f"LSQ: the scale of {entry.full_name} is NaN or infinite and cannot be exported")
        return scale

    def check_exportable(self) -> None:
        super().check_exportable()
        for entry in self.selection.originals:
            self._sound_scale(entry)

    def stored_entry(self, entry: QuantizedParameter, ranges: Tensor, packed: bool, torch_pack: bool) -> Any:
        scale, indices = self._sound_scale(entry), self._indices(entry)
        options: dict[str, Any] = {"packed": packed, "torch_pack": torch_pack, "name": entry.full_name}
        return legacy_entries.encode_lsq_entry(indices, scale, bits=int(self.bits), **options)

    def decoding_arguments(self, stated: Mapping[str, Any]) -> Mapping[str, Any]:
        refuse_other_bits(type(self).__name__, self.bits, stated.get("bits", self.bits))
        return {"bits": self.bits}

    def set_learned(self, entry: QuantizedParameter, levels: Levels) -> None:
        entry.logit.copy_(levels.ranges.reshape(()))


@dataclass(frozen=True)
class ScaleRule:
    """How a learned scale and a packed weight belong together, see :class:`.registry.Rule`."""

    suffix: str = "_lsq"
    noun: ClassVar[str] = "scale"
    reach: ClassVar[str] = "a scale"

    def problem(self) -> str | None:
        """What is impossible about the rule, or None: its suffix may come from a file."""
        usable = isinstance(self.suffix, str) and self.suffix
        return None if usable else f"suffix must be a text, got {self.suffix!r:.40}"

    def misfit(self, packed: Any, shape: list[int]) -> str:
        """Why a parameter of another shape is no scale."""
        return f"expected one scale, the model has {shape}"

    def belongs_to(self, packed: Any) -> bool:
        """Scales belong to the weights that have one."""
        return packed.range_scope == "scale"

    def shape(self, packed: Any) -> tuple[int, ...]:
        """A scale is one number."""
        return ()

    def learned(self, packed: Any) -> Tensor:
        """The scale."""
        return packed.ranges.reshape(())

    def changed(self, packed: Any, learned: Tensor) -> int:
        """A scale changes no width."""
        return 0

    def differing(self, stated: Any) -> dict[str, Any]:
        """A scale means the same to every LSQ."""
        return {}


def _decode(stored: Any, shape: Sequence[int], arguments: Mapping[str, Any], name: str) -> Levels:
    bits = arguments.get("bits", 8)
    indices, scale = legacy_entries.decode_lsq_entry(stored, shape, bits=bits, name=name)
    width = math.ceil(bits)
    widths = torch.full((1,), width, dtype=torch.uint8, device="cpu")
    return Levels(indices + 2 ** (width - 1), widths, scale, 0, "scale")


register(
    Scheme(
        LSQ,
        diffq_name="diffq.lsq.LSQ",
        rule=lambda arguments: ScaleRule(arguments.get("suffix", "_lsq")),
        decode=_decode,
        recognises=lambda entry: len(entry) == 2 and not isinstance(entry[1], list | tuple),
    )
)
