"""Freezing the bits near the end of a training, so that it trains at the widths of the export.

Frozen logits stand at values that give whole bits, so every copy of them (state dict, packed file, stored state) gives
the same widths again; the only thing that is not in the logits is that they are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .. import functional
from ..reference.bits import logits_from_bits
from ..reference.logit_rule import LogitRule
from .base import drop_compiled_graphs
from .bit_budget import BitBudget
from .export import BITS_PER_MB
from .learned import LearnedQuantizer
from .selection import QuantizedParameter
from .straight_through import straight_through

# The interval in which the noise's operator is told whole bits: any that has 1 … 15 well inside.
WHOLE_INTERVAL = (0.5, 15.5)

Options = dict[str, Any]  # of an operator, by argument

_frozen: WeakSet[FreezableBits] = WeakSet()


class FreezableBits(LearnedQuantizer):
    """The half of a DiffQuantizer that freezes its bits. Not used by itself."""

    if TYPE_CHECKING:
        group_size: int
        min_bits: float
        max_bits: float
        extra_bits: float
        param: str
        range_scope: str

        def _get_bits(self, logit: Tensor) -> Tensor: ...
        def _widths(self, entry: QuantizedParameter) -> Tensor: ...

    _bits_are_frozen = False
    _rounds_in_training = False

    @property
    def bits_frozen(self) -> bool:
        """Whether :meth:`freeze_bits` is in force."""
        return self._bits_are_frozen

    def freeze_bits(self, mb: float | None = None, *, straight_through: bool = False) -> None:
        """Round the bits for good: from now on training sees the widths of the export, and they stay.

        No optimizer of torch moves the logits any more, and ``true_model_size()`` does not change. Training goes on
        with the noise of whole bits, or, with ``straight_through``, with the very weights of the export. Call it
        between two training steps. The logits are set to values that give these widths: a state dict, a packed file
        and a stored state carry them, but not that they are frozen. After loading one into a new quantizer, call
        ``freeze_bits()`` again; it finds the same widths.

        Args:
            mb: choose the rounding so that ``true_model_size()`` is at most this and as near to it as whole bits
                allow (see ``docs/size_target.md``); None: the nearest whole bits, as an export has them.
            straight_through: no more noise: each training forward sees the weights rounded as they stand, and their
                gradients are passed on to the float weights unchanged, as with ``UniformQuantizer(qat=True)``. For
                the end of a training: the weights settle around the rounding that will be used.

        Raises:
            ValueError: no whole bits between min_bits and max_bits are as small as ``mb``.
        """
        rule = LogitRule(self.min_bits, self.max_bits, self.extra_bits, self.param, self.suffix)
        with torch.no_grad():
            for entry, widths in zip(self._firsts, self._widths_to_freeze(mb), strict=True):
                entry.logit.copy_(rule.logits(widths))
        for logit in self._logits():
            logit.grad = None
        self._bits_are_frozen = True
        self._rounds_in_training = straight_through
        self._of_frozen: dict[QuantizedParameter, tuple[tuple, Tensor]] = {}
        _frozen.add(self)
        drop_compiled_graphs()

    def unfreeze_bits(self) -> None:
        """Let the bits be learned again, from the whole numbers at which :meth:`freeze_bits` left them."""
        self._bits_are_frozen = self._rounds_in_training = False
        _frozen.discard(self)
        drop_compiled_graphs()

    def _widths_to_freeze(self, mb: float | None) -> list[Tensor]:
        if mb is None:
            return [self._widths(entry) for entry in self._firsts]
        budget = BitBudget(self)
        smallest = budget.uniform_size(budget.widths[0])
        if mb * BITS_PER_MB < smallest:
            raise ValueError(
                f"DiffQuantizer.freeze_bits: mb must be at least {smallest / BITS_PER_MB:.6g}, the size with "
                f"{budget.widths[0]} bits everywhere, got {mb:g}; lower min_bits, or keep the rest in half "
                "precision (float16=True)"
            )
        full = [entry for entry in self._firsts if entry.param.numel()]
        bits = budget.row([self.extra_bits + self._get_bits(entry.logit) for entry in full])
        found = dict(zip(full, budget.split(budget.fit(bits, mb * BITS_PER_MB)), strict=True))
        return [found.get(entry, entry.logit.detach()) for entry in self._firsts]

    def _noise_logits(self, entries: Sequence[QuantizedParameter]) -> tuple[list[Tensor], Options]:
        """The logits that the noise of these weights is made of, and how the operator reads them.

        Frozen logits stay in the graph with gradient zero: a distributed wrapper waits for the gradient of every
        parameter that it has once seen.
        """
        logits: list[Tensor] = [entry.logit for entry in entries]
        if not self._bits_are_frozen:
            return logits, {"min_bits": self.min_bits, "max_bits": self.max_bits, "param": self.param}
        whole = [self._kept(entry, self._to_whole_logit) for entry in entries]
        options = {"min_bits": WHOLE_INTERVAL[0], "max_bits": WHOLE_INTERVAL[1], "param": "bits"}
        return list(torch._foreach_add(whole, logits, alpha=0)), options

    def _rounded_weights(self, bucket: Sequence[QuantizedParameter], dtype: torch.dtype | None) -> list[Tensor]:
        """The bucket's weights as an export has them, in ``dtype`` (None: each in its own), straight through."""
        with torch.no_grad():
            rounded = self._as_exported(bucket, [self._kept(entry, self._widths) for entry in bucket], dtype)
        return straight_through([entry.param for entry in bucket], rounded, [entry.logit for entry in bucket])

    def _as_exported(
        self, bucket: Sequence[QuantizedParameter], widths: Sequence[Tensor], dtype: torch.dtype | None
    ) -> list[Tensor]:
        """Weights of one device, rounded to these widths, in ``dtype`` (None: each in its own)."""
        groups: Options = {"group_size": self.group_size, "range_scope": self.range_scope}
        weights = [self._storable(entry) for entry in bucket]
        found = functional.weight_range(weights, **groups)
        rounded = functional.fake_quantize(weights, widths, found, **groups, dtype=dtype)
        return [each.to(dtype or entry.param.dtype) for each, entry in zip(rounded, bucket, strict=True)]

    def _kept(self, entry: QuantizedParameter, make: Callable[[QuantizedParameter], Tensor]) -> Tensor:
        """What ``make`` gives for the weight's frozen logit, made once per version of it."""
        if torch.compiler.is_compiling():
            return make(entry)
        logit = entry.logit.detach()
        stamp = (logit.data_ptr(), logit._version, logit.device, logit.dtype)
        if self._of_frozen.get(entry, (None,))[0] != stamp:
            self._of_frozen[entry] = (stamp, make(entry))
        return self._of_frozen[entry][1]

    def _to_whole_logit(self, entry: QuantizedParameter) -> Tensor:
        """The logit that gives the weight's widths in :data:`WHOLE_INTERVAL`."""
        return logits_from_bits(self._widths(entry).to(torch.float64), *WHOLE_INTERVAL).to(torch.float32)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._bits_are_frozen:
            _frozen.add(self)


def _drop_gradients(*_: Any) -> None:
    """A parameter without gradient is passed over by an optimizer: no momentum, no weight decay."""
    for quantizer in _frozen:
        for logit in quantizer._logits():
            logit.grad = None


register_optimizer_step_pre_hook(_drop_gradients)
