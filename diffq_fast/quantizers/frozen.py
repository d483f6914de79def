"""Freezing the bits near the end of a training, so that it trains at the widths of the export.

Frozen logits stand at values that give whole bits, so every copy of them (state dict, packed file, stored state) gives
the same widths again; the only thing that is not in the logits is that they are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..reference.bits import logits_from_bits
from ..reference.options import NoiseOptions
from .selection import QuantizedParameter
from .shards import is_sharded, write
from .straight_through import straight_through

# The interval in which the noise's operator is told whole bits: any that has 1 … 15 well inside.
WHOLE_INTERVAL = (0.5, 15.5)

_frozen: WeakSet[FrozenBits] = WeakSet()


class Piece(Protocol):
    """A weight of a bucket, see ``noise.Piece``."""

    @property
    def entry(self) -> QuantizedParameter: ...
    @property
    def weight(self) -> Tensor: ...
    @property
    def logit(self) -> Tensor: ...
    @property
    def stream(self) -> int: ...


class LogitsOfWidths(Protocol):
    """A rule that knows the logits of widths, or of what a quantizer has in their place."""

    def logits(self, widths: Tensor) -> Tensor: ...


class LearnedEnds(Protocol):
    """Ranges whose ends are learned."""

    def straight_through(self, bucket: Sequence[Piece], rounded: Sequence[Tensor]) -> list[Tensor]: ...


# Rounds weights of one device to these widths, into a dtype, or each into its own (None).
Rounder = Callable[[Sequence[QuantizedParameter], Sequence[Tensor], torch.dtype | None], list[Tensor]]


class FrozenBits:
    """Whether a quantizer's bits are frozen, and what training sees then.

    Args:
        entries: the untied weights.
        widths_of: gives the widths of an export, uint8 ``[groups]``, of a weight's logits.
        rounder: rounds weights as an export does.

    Attributes:
        active: the bits are frozen.
        rounds_weights: training sees rounded weights instead of noisy ones.
        ranges: those that are learned, and get gradients from rounded weights; None: none are.
    """

    ranges: LearnedEnds | None = None

    def __init__(
        self,
        entries: Sequence[QuantizedParameter],
        widths_of: Callable[[Tensor], Tensor],
        rounder: Rounder,
    ) -> None:
        self.active = self.rounds_weights = False
        self._entries, self._widths_of, self._rounder = entries, widths_of, rounder
        self._kept: dict[QuantizedParameter, tuple[tuple, Tensor]] = {}

    def freeze(self, rule: LogitsOfWidths, widths: Sequence[Tensor], rounds_weights: bool) -> None:
        """Set the logits to what gives ``widths``, one tensor for each weight, and keep them there."""
        with torch.no_grad():
            for entry, width in zip(self._entries, widths, strict=True):
                write(entry.logit, rule.logits(width))
        self.drop_gradients()
        self.active, self.rounds_weights = True, rounds_weights
        self._kept.clear()
        _frozen.add(self)

    def unfreeze(self) -> None:
        """Let the bits be learned again."""
        self.active = self.rounds_weights = False
        _frozen.discard(self)

    def drop_gradients(self) -> None:
        """A parameter without gradient is passed over by an optimizer: no momentum, no weight decay."""
        for entry in self._entries:
            entry.logit.grad = None

    def noise_of(self, options: NoiseOptions, bucket: Sequence[Piece]) -> tuple[NoiseOptions, list[Tensor]]:
        """The options and logits that the noise of these weights is made of while bits are frozen.

        Frozen logits stay in the graph with gradient zero: a distributed wrapper waits for the gradient of every
        parameter that it has once seen.
        """
        logits: list[Tensor] = [piece.logit for piece in bucket]
        whole = [self.once(piece, self._to_whole_logit) for piece in bucket]
        low, high = WHOLE_INTERVAL
        options = options._replace(min_bits=low, max_bits=high, param="bits")
        return options, list(torch._foreach_add(whole, logits, alpha=0))

    def rounded(self, bucket: Sequence[Piece], dtype: torch.dtype | None) -> list[Tensor]:
        """The bucket's weights as an export has them, in ``dtype`` (None: each in its own), straight through."""
        with torch.no_grad():
            widths = [self.once(piece, self._widths_of) for piece in bucket]
            made = self._rounder([piece.entry for piece in bucket], widths, dtype)
            rounded = [each.to(dtype or piece.weight.dtype) for each, piece in zip(made, bucket, strict=True)]
        if self.ranges is not None:
            return self.ranges.straight_through(bucket, rounded)
        return straight_through([piece.weight for piece in bucket], rounded, [piece.logit for piece in bucket])

    def once(self, piece: Piece, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``make`` gives for the weight's frozen logit, made once per version of it."""
        logit = piece.logit.detach()
        if torch.compiler.is_compiling() or is_sharded(piece.entry.logit):
            return make(logit)  # the whole logit is another tensor each time
        stamp = (logit.data_ptr(), logit._version, logit.device, logit.dtype)
        if self._kept.get(piece.entry, (None,))[0] != stamp:
            self._kept[piece.entry] = (stamp, make(logit))
        return self._kept[piece.entry][1]

    def _to_whole_logit(self, logit: Tensor) -> Tensor:
        """The logit that gives the weight's widths in :data:`WHOLE_INTERVAL`."""
        return logits_from_bits(self._widths_of(logit).to(torch.float64), *WHOLE_INTERVAL).to(torch.float32)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.active:
            _frozen.add(self)


def _drop_gradients() -> None:
    for frozen in _frozen:
        frozen.drop_gradients()


def _before_step(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
    """Drop the gradients, and once more where a closure, which is called inside of the step, makes them anew."""
    _drop_gradients()
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None or not _frozen:
        return None

    def dropping() -> Any:
        loss = closure()
        _drop_gradients()
        return loss

    if len(args) > 1:
        return (args[0], dropping, *args[2:]), kwargs
    return args, {**kwargs, "closure": dropping}


register_optimizer_step_pre_hook(_before_step)
