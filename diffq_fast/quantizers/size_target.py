"""Training to a size that is asked for, instead of to one that a hand-picked penalty happens to give.

The price of a megabyte, the factor of the penalty, is that at which a common change of all bits would change the task
loss by as much as the penalty: a multiplier read from the logits' gradients. So it follows the scale of the loss by
itself, and at this price the optimizer moves bits between groups without changing their sum. What is left of the
distance to the size is taken by moving all bits together, after the optimizer's step. ``docs/size_target.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .bit_budget import BitBudget
from .diffq import DiffQuantizer
from .export import BITS_PER_MB

CONTROLS = 1000  # of a training, at least; fewer steps: at each
PRICE_RATE = 0.05  # weight of a new reading in the running mean of the price
ROUNDING_RATE = 0.1  # the same for what rounding does to the size
LARGEST_MOVE = 0.25  # of a logit, at one control


class SizeTarget:
    """Leads the size of a model to a target while it trains, whatever optimizer, learning rate and loss scale.

    In the training loop::

        target = SizeTarget(quantizer, mb=2.0, total_steps=len(loader) * epochs)
        ...
        loss = task_loss + target.penalty()
        loss.backward()
        optimizer.step()
        target.step()  # before the gradients are cleared

    The size is ``quantizer.true_model_size()``: that of the export, with whole bits, width tables, ranges and the
    parameters that are not quantised.

    Args:
        quantizer: a :class:`DiffQuantizer`, set up with its optimizer.
        mb: the size in MB (2**20 bytes).
        bits_per_weight: or, instead, the size in bits divided by the number of all parameters: 2.67 is 12 times
            smaller than float32.
        total_steps: of the whole training: calls of :meth:`step`.
        reach_at: share of the steps after which the size is the target; it goes there in equal ratios.
        freeze_at: share of the steps after which the bits are frozen (``quantizer.freeze_bits``) at the target, so
            that the training ends at the widths of the export. None: never; the rounded size is led to the target.

    Raises:
        ValueError: an argument is out of its range, or the target cannot be reached; the text says what can.
    """

    def __init__(
        self,
        quantizer: DiffQuantizer,
        mb: float | None = None,
        bits_per_weight: float | None = None,
        *,
        total_steps: int,
        reach_at: float = 0.5,
        freeze_at: float | None = 0.9,
    ) -> None:
        budget = BitBudget(quantizer)
        self.quantizer = quantizer
        self.mb = _megabytes(mb, bits_per_weight, budget)
        self.total_steps, self.reach_at, self.freeze_at = total_steps, reach_at, freeze_at
        self._every = max(1, total_steps // CONTROLS)
        self.steps = 0
        self._floor = budget.uniform_size(quantizer.min_bits + quantizer.extra_bits) / BITS_PER_MB
        like = torch.zeros((), device=budget.device)
        self._price = like.clone()
        self._start = like.clone()
        self._rounding = like.clone()
        self._controls = 0

    def penalty(self) -> Tensor:
        """The present price times ``quantizer.model_size()``: add it to the task loss. 0-dim, on the device."""
        return self._price * self.quantizer.model_size()

    def step(self) -> None:
        """Call once after each ``optimizer.step()``, before the gradients are cleared.
        """
        self.steps += 1
        if self.quantizer.bits_frozen:
            return
        if self.freeze_at is not None and self.steps >= self.freeze_at * self.total_steps:
            self.quantizer.freeze_bits(mb=self.mb)
        elif self.steps % self._every == 0:
            self._control()

    def _control(self) -> None:
        entries = [entry for entry in self.quantizer._firsts if entry.param.numel()]
        logits = [entry.logit for entry in entries]
        with torch.enable_grad():
            size = self.quantizer.model_size()
            slopes = torch.autograd.grad(size, logits)
        size = size.detach()
        group = self.quantizer.group_size
        moves = torch._foreach_div(list(slopes), [group or entry.param.numel() for entry in entries])
        pull = self._dot(slopes, moves)
        self._controls += 1
        self._reprice([logit.grad for logit in logits], moves, pull)
        if self._controls == 1:
            self._start.copy_(size)
        exact = self.quantizer.model_size(exact=True).detach()
        self._rounding += ROUNDING_RATE * ((exact / size).log() - self._rounding)
        excess = (size - self._wanted() * (-self._rounding).exp()) / pull
        largest = torch.stack(torch._foreach_norm(moves, torch.inf)).max() * excess.abs()
        excess = excess * (LARGEST_MOVE / largest.clamp(min=LARGEST_MOVE))
        with torch.no_grad():
            torch._foreach_sub_(logits, torch._foreach_mul(moves, excess))

    def _wanted(self) -> Tensor:
        share = min(self.steps / (self.reach_at * self.total_steps), 1.0)
        start = (self._start - self._floor).clamp(min=1e-3 * self._floor)
        end = max(self.mb - self._floor, 1e-3 * self._floor)
        return self._floor + start ** (1 - share) * end**share

    def _reprice(self, grads, moves, pull) -> None:
        push = self._dot(grads, moves)
        rate = max(1 / self._controls, PRICE_RATE)
        self._price.copy_((self._price - rate * push / pull).clamp(min=0))

    def _dot(self, left, right) -> Tensor:
        return torch.stack([(a.float() * b).sum() for a, b in zip(left, right)]).sum()


def _megabytes(mb: float | None, bits_per_weight: float | None, budget: BitBudget) -> float:
    if (mb is None) == (bits_per_weight is None):
        raise ValueError("SizeTarget: expected exactly one of mb and bits_per_weight")
    return mb if mb is not None else bits_per_weight * budget.count / BITS_PER_MB
