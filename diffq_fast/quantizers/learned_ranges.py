"""Ranges with learned ends: what training sees of them, and what a file keeps.

LSQ+ (Bhalgat et al., "LSQ+: Improving low-bit quantization through learnable offsets and better initialization", CVPR
Workshops 2020) learns scale and offset by the gradient of rounding; here noise of one step stands for rounding too.
``docs/method.md``, section 3, has the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import functional
from ..reference.clipped_noise import noisy_clipped_weight, noisy_clipped_weight_backward, rounded_weight_backward
from ..reference.options import NoiseOptions
from ..reference.short_ranges import GROUPS_PER_UNIT, decode_ranges, nearest_codes, units_of_ranges
from .frozen import Piece

SUFFIX = "_range"  # behind that of the logits


class ShortCodes(NamedTuple):
    """Ranges in 16 bits: int8 ``[groups, 2]``, and a float32 unit for each ``groups_per_unit`` groups."""

    codes: Tensor
    units: Tensor
    groups_per_unit: int


class LearnedRanges:
    """The ends of a quantizer's ranges, parameters ``[1, 2]`` or, per group, ``[groups, 2]``.

    Args:
        group_size: elements per group. range_scope: "tensor" or "group", whose ranges they are.
        short: a file keeps them in 16 bits, and everybody sees what it keeps.
    """

    def __init__(self, group_size: int, range_scope: str, short: bool) -> None:
        self._scheme: dict[str, Any] = {"group_size": group_size, "range_scope": range_scope}
        self._options = NoiseOptions(group_size, range_scope=range_scope)
        self._short = short

    def extremes(self, weight: Tensor) -> Tensor:
        """The smallest and the largest element, float32."""
        return functional.weight_range([weight.detach()], **self._scheme).to(torch.float32)

    def codes(self, ends: Tensor) -> ShortCodes | None:
        """How a file keeps the ranges of these ends in 16 bits; None: as they are."""
        if not self._short:
            return None
        ranges = _sorted(ends)
        units = units_of_ranges(ranges, GROUPS_PER_UNIT)
        return ShortCodes(nearest_codes(ranges, units, GROUPS_PER_UNIT), units, GROUPS_PER_UNIT)

    def kept(self, ends: Tensor) -> Tensor:
        """float32 rows (lo, hi) of these ends, as training, evaluation and files have them. No gradient."""
        with torch.no_grad():
            short = self.codes(ends.detach())
            return _sorted(ends.detach()) if short is None else decode_ranges(*short)

    def holds(self, ranges: Tensor) -> bool:
        """Whether a file's ranges stay as they are as learned ones."""
        ranges = ranges.reshape(-1, 2)
        return torch.equal(self.kept(ranges), ranges)

    def noisy(
        self,
        bucket: Sequence[Piece],
        logits: Sequence[Tensor],
        key: Tensor,
        options: NoiseOptions,
        nonfinite: Tensor | None,
        dtype: torch.dtype | None,
    ) -> list[Tensor]:
        """The weights of a bucket, clipped to their ranges, with noise of one step. ``nonfinite``: as in ``add_noise``,
        but the ends' gradients count too."""
        ends = [piece.entry.ends for piece in bucket]
        ranges = [self.kept(each) for each in ends]
        weights, streams = [piece.weight for piece in bucket], [piece.stream for piece in bucket]
        return list(_Noise.apply(streams, options, dtype, key, nonfinite, *weights, *logits, *ends, *ranges))

    def straight_through(self, bucket: Sequence[Piece], rounded: Sequence[Tensor]) -> list[Tensor]:
        """``rounded``, with gradients for the weights that lie inside, and for the ends; zeros for the logits."""
        weights, logits = [piece.weight for piece in bucket], [piece.logit for piece in bucket]
        ends = [piece.entry.ends for piece in bucket]
        ranges = [self.kept(each) for each in ends]
        return list(_Rounding.apply(len(bucket), self._options, *weights, *logits, *ends, *ranges, *rounded))


@dataclass(frozen=True)
class RangeRule:
    """How the learned ends of a weight's ranges and its packed form belong together: they are the file's ranges."""

    suffix: str
    noun: ClassVar[str] = "ends of ranges"
    reach: ClassVar[str] = "any ranges"

    def problem(self) -> str | None:
        """Nothing can be wrong."""
        return None

    def belongs_to(self, packed: Any) -> bool:
        """Ends belong to all weights that have ranges."""
        return packed.range_scope in ("tensor", "group")

    def shape(self, packed: Any) -> tuple[int, ...]:
        """Of the ends."""
        return (packed.ranges.numel() // 2, 2)

    def misfit(self, packed: Any, shape: list[int]) -> str:
        """Why ends of another shape are none for the weight."""
        theirs = list(self.shape(packed))
        return f"the model has {shape} ends of ranges, the file {theirs}; use the same range_scope and group_size"

    def learned(self, packed: Any) -> Tensor:
        """The file's ranges."""
        return packed.ranges.reshape(-1, 2)

    def changed(self, packed: Any, learned: Tensor) -> int:
        """None: they decide no width."""
        return 0

    def differing(self, stated: Any) -> dict[str, Any]:
        """None: any file says its ranges."""
        return {}


class _Noise(torch.autograd.Function):
    """Keeps weights, logits, ends, ranges and the key, and no noise: it is made again. One node for a bucket."""

    @staticmethod
    def forward(ctx, streams, options, dtype, key, nonfinite, *tensors):
        ctx.streams, ctx.options = streams, options
        ctx.save_for_backward(key, *tensors)
        ctx.set_materialize_grads(False)
        weights, logits, _, ranges = _quarters(tensors)
        noises = [_noise_of(key, *each, options) for each in zip(streams, weights, strict=True)]
        parts = zip(weights, logits, ranges, noises, strict=True)
        return tuple(noisy_clipped_weight(*each, options, dtype) for each in parts)

    @staticmethod
    def backward(ctx, *grads):
        key, *tensors = ctx.saved_tensors
        weights, logits, ends, ranges = _quarters(tensors)
        ranges = [_following(*each) for each in zip(ranges, ends, strict=True)]
        made: list[tuple[Tensor | None, ...]] = []
        counts = []
        for index, grad in enumerate(grads):
            if grad is None:
                made.append((None,) * 3)
                counts.append(ranges[index].new_zeros(()))
                continue
            noise = _noise_of(key, ctx.streams[index], weights[index], ctx.options)
            parts = weights[index], logits[index], ranges[index], noise, ctx.options
            grad_weight, *learned = noisy_clipped_weight_backward(grad, *parts)
            wrong = [~each.isfinite() for each in learned]
            counts.append((wrong[0].sum() + wrong[1].sum()).to(torch.float32))
            of_logit, of_ranges = (each.masked_fill(mask, 0) for each, mask in zip(learned, wrong, strict=True))
            made.append((grad_weight, of_logit, _as_given(of_ranges, ends[index])))
        lists = [list(each) for each in zip(*made, strict=True)]
        nonfinite = torch.stack(counts) if ctx.needs_input_grad[4] else None
        return (None, None, None, None, nonfinite, *lists[0], *lists[1], *lists[2], *[None] * len(grads))


class _Rounding(torch.autograd.Function):
    """Shows the rounded weights; those are ``clamp(weight, lo, hi) + (hi - lo) * share``, the shares taken as fixed."""

    @staticmethod
    def forward(ctx, count, options, *tensors):
        ctx.count, ctx.options = count, options
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(rounded.view_as(rounded) for rounded in tensors[4 * count :])

    @staticmethod
    def backward(ctx, *grads):
        tensors = ctx.saved_tensors
        weights, logits, ends, ranges = _quarters(tensors[: 4 * ctx.count])
        ranges = [_following(*each) for each in zip(ranges, ends, strict=True)]
        result: list[Tensor | None] = [None] * len(tensors)
        for index, grad in enumerate(grads):
            if grad is None:
                continue
            weight, rounded = weights[index], tensors[4 * ctx.count + index]
            result[index], of_ranges = rounded_weight_backward(grad, weight, rounded, ranges[index], ctx.options)
            result[ctx.count + index] = torch.zeros_like(logits[index])
            result[2 * ctx.count + index] = _as_given(of_ranges, ends[index])
        return (None, None, *result)


def _noise_of(key: Tensor, stream: int, weight: Tensor, options: NoiseOptions) -> Tensor:
    return functional.noise(key, stream, weight.numel(), noise_kind=options.noise_kind)


def _sorted(ends: Tensor) -> Tensor:
    """An optimizer may carry one end past the other."""
    return torch.where(ends[:, :1] > ends[:, 1:], ends.flip(1), ends)


def _following(ranges: Tensor, ends: Tensor) -> Tensor:
    """The same ranges, for gradients of gradients as if they were their ends."""
    ends = _sorted(ends)
    return ranges + (ends - ends.detach())


def _as_given(grad_ranges: Tensor, ends: Tensor) -> Tensor:
    """The gradients of (lo, hi) as those of the ends that they were sorted from."""
    crossed = ends[:, :1] > ends[:, 1:]
    return torch.where(crossed, grad_ranges.flip(1), grad_ranges).to(ends.dtype)


def _quarters(tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    count = len(tensors) // 4
    return [tensors[index * count : (index + 1) * count] for index in range(4)]
