"""Training to a size that is asked for, instead of to the one that a hand-picked penalty happens to give.

The price of a megabyte, the factor of the penalty, is what a megabyte is worth to the task: by how much the task loss
would fall if all bits together were changed so that the model grew by one. It is read from the logits' gradients, so it
follows the scale of the loss by itself, and at this price the optimizer moves bits between groups without changing
their sum. All bits are moved together towards the target, after the optimizer's step, so the way there does not depend
on the optimizer either. ``docs/size_target.md`` tells more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .arguments import check_number
from .base import BITS_PER_MB
from .gathering import gathered
from .reachable import check_reachable
from .shards import local, placed_like
from .sizes import BitBudget
from .weights import Weight

CONTROLS = 1000  # of a training of many steps; a shorter one is controlled at each second step
RAISED_PRICE = 4.0  # times the price, in the mean on the way to the target: has the optimizer take part in the way
PRICE_RATE = 0.05  # weight of a new reading in the running mean of the price
ROUNDING_RATE = 0.1  # the same for how rounding changes the size
REFITS = 8  # of frozen steps, at most
CLOSE_ENOUGH = 0.01  # below the target: a size that is left alone
LARGEST_MOVE = 0.5  # of a logit, in one control
LEAST_LEARNED = 1e-3  # of the smallest size: what the schedule takes the learned part to be at least


@runtime_checkable
class LearnsBits(Protocol):
    """What a size target needs of a quantizer."""

    group_size: int
    min_bits: float
    max_bits: float
    extra_bits: float

    @property
    def weights(self) -> list[Weight]: ...
    @property
    def bits_frozen(self) -> bool: ...
    def model_size(self, exact: bool = False) -> Tensor: ...
    def bit_budget(self) -> BitBudget: ...
    def freeze_bits(self, mb: float | None = None, *, straight_through: bool = False) -> None: ...
    def unfreeze_bits(self) -> None: ...


class SizeTarget:
    """Leads a model's size to a target while it trains, whatever the optimizer, learning rate and loss scale.

    In the training loop::

        target = SizeTarget(quantizer, mb=2.0, total_steps=epochs * len(loader))
        ...
        loss = task_loss + target.penalty()
        loss.backward()
        optimizer.step()
        target.step()  # before the gradients are cleared

    The size is ``quantizer.true_model_size()``, that of the export: whole bits, width tables, ranges, and the
    parameters that are not quantised. Nothing here waits for the device until the bits are frozen, once.

    Args:
        quantizer: set up with its optimizer. What it is made for (model, min_bits, …) must stay.
        mb: the size in MB (2**20 bytes).
        bits_per_weight: or, instead, that size in bits over the number of all parameters: 32 / 12 is a twelfth of
            float32.
        total_steps: calls of :meth:`step` in the whole training.
        warm_up: share of the steps in which the size stays where it is at the start.
        reach_at: share of the steps after which the size is the target; it goes there in equal ratios.
        freeze_at: share of the steps after which the bits are frozen at the target (``quantizer.freeze_bits``), so
            that the training ends at the widths of the export; 1: with the last step.
        straight_through: from then on train with the rounded weights of the export instead of noise.

    Raises:
        TypeError: the quantizer learns no bits.
        ValueError: an argument is out of its range, or the target is out of reach; the text says what would help.
    """

    def __init__(
        self,
        quantizer: LearnsBits,
        mb: float | None = None,
        bits_per_weight: float | None = None,
        *,
        total_steps: int,
        warm_up: float = 0.05,
        reach_at: float = 0.4,
        freeze_at: float = 0.5,
        straight_through: bool = True,
    ) -> None:
        if not isinstance(quantizer, LearnsBits):
            raise TypeError(
                f"SizeTarget: quantizer must be a DiffQuantizer or a RateQuantizer, got {type(quantizer).__name__}"
            )
        _check_schedule(total_steps, warm_up, reach_at, freeze_at)
        budget = quantizer.bit_budget()
        self.quantizer = quantizer
        self.mb = _megabytes(mb, bits_per_weight, budget.count)
        self.total_steps = total_steps
        self.warm_up, self.reach_at, self.freeze_at = warm_up, reach_at, freeze_at
        self.straight_through = straight_through
        self.steps = 0
        check_reachable(self.mb, quantizer, budget)
        self._smallest = budget.uniform_size(quantizer.min_bits + quantizer.extra_bits) / BITS_PER_MB
        self._rounds = budget.rounds
        self._every = max(2, total_steps // CONTROLS)
        self._controls = 0
        self._price, self._start, self._rounding = torch.zeros(3, dtype=torch.float32, device=budget.device).unbind()

    @property
    def price(self) -> Tensor:
        """Loss per MB: what a megabyte is worth to the task at present. 0-dim, on the device."""
        return self._price.clone()

    def penalty(self) -> Tensor:
        """A price times ``quantizer.model_size()``, to be added to the task loss. 0-dim, on the device.

        On the way to the target the price is raised: bits are then given up where they are worth least. Not at the
        steps whose gradients are read, since nobody knows by how much a clipping of gradients has scaled them.
        """
        return self._price * self._factor() * self.quantizer.model_size()

    def _factor(self) -> float:
        """By how much the price is raised at the present step: to ``RAISED_PRICE`` in the mean, on the way."""
        is_read = (self.steps + 1) % self._every == 0
        if is_read or self.steps >= self.reach_at * self.total_steps:
            return 1.0
        return (RAISED_PRICE * self._every - 1) / (self._every - 1)

    def wanted_size(self) -> Tensor:
        """Where the schedule has the size now, in MB. 0-dim, on the device.

        On its way the part above the smallest size shrinks in equal ratios.
        """
        share = (self.steps / self.total_steps - self.warm_up) / (self.reach_at - self.warm_up)
        share = min(max(share, 0.0), 1.0)
        least = LEAST_LEARNED * self._smallest
        start = (self._start - self._smallest).clamp(min=least)
        return self._smallest + start ** (1 - share) * max(self.mb - self._smallest, least) ** share

    def step(self) -> None:
        """Call once behind each ``optimizer.step()``, before the gradients are cleared.

        It reads the logits' gradients and moves the logits, at each second step of a training of up to 2,000, else
        about 1,000 times. Under a GradScaler call it behind ``scaler.step(optimizer)``, which leaves the gradients
        unscaled.

        Raises:
            RuntimeError: the logits have no gradients.
        """
        self.steps += 1
        if self.quantizer.bits_frozen:
            if self._is_refit() and not self._fits():
                self.quantizer.freeze_bits(mb=self.mb, straight_through=self.straight_through)
            return
        if self.steps >= self.freeze_at * self.total_steps:
            self.quantizer.freeze_bits(mb=self.mb, straight_through=self.straight_through)
        elif self.steps % self._every == 0:
            self._control()

    def _is_refit(self) -> bool:
        """Whether frozen steps are fitted to the target once more: where the size depends on the weights too, they move
        it. A few times, and with the last step."""
        left = self.total_steps - self.steps
        every = max(1, round((1 - self.freeze_at) * self.total_steps / REFITS))
        return not self._rounds and left >= 0 and left % every == 0

    def _fits(self) -> bool:
        """Whether frozen steps may stay as they are. Other steps would round all weights anew, which costs much where
        training has settled in these. Waits for the device."""
        size = float(self.quantizer.model_size(exact=True))
        return (1 - CLOSE_ENOUGH) * self.mb <= size <= self.mb

    # -- one control ---------------------------------------------------------------------------------------------------

    def _control(self) -> None:
        """Read the price, then move all bits so that the size is where the schedule has it."""
        weights = [weight for weight in self.quantizer.weights if weight.tied_to is None and weight.parameter.numel()]
        logits = [weight.learned for weight in weights if weight.learned is not None]
        size, slopes = self._size_and_slopes(logits)
        if self._controls == 0:
            self._start.copy_(size)
        # A weight's group of many elements does not move further for it: all bits go by about the same.
        elements = [weight.parameter.numel() / logit.numel() for weight, logit in zip(weights, logits, strict=True)]
        directions = list(torch._foreach_div(slopes, elements))
        gain = self._sum_of_products(slopes, directions)
        self._controls += 1
        self._read_price(logits, directions, gain)
        self._move(logits, directions, (size - self._wanted_before_rounding(size)) / gain)

    def _size_and_slopes(self, logits: Sequence[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
        """The size in MB, and its derivatives with respect to the logits."""
        with torch.enable_grad():
            size = self.quantizer.model_size()
            slopes = torch.autograd.grad(size, logits)
        return size.detach().to(self._price), gathered(slopes, averaged=False)

    def _read_price(self, logits: Sequence[nn.Parameter], directions: list[Tensor], gain: Tensor) -> None:
        """Correct the price by what is left of the loss's slope along the common direction, penalty included.

        The first readings are averaged evenly. One that is not finite, of a step that a GradScaler skipped, is left
        out.
        """
        found = [(logit.grad, each) for logit, each in zip(logits, directions, strict=True) if logit.grad is not None]
        grads = gathered([grad for grad, _ in found], averaged=False)
        pairs = [(grad, direction) for grad, (_, direction) in zip(grads, found, strict=True)]
        if not pairs:
            raise RuntimeError(
                "SizeTarget.step: the logits have no gradients; call it right behind optimizer.step(), before "
                "zero_grad(), and add penalty() to the loss"
            )
        left = self._sum_of_products(*zip(*pairs, strict=True)) / gain
        left = torch.where(left.isfinite(), left, 0.0)
        self._price.sub_(max(1 / self._controls, PRICE_RATE) * left).clamp_(min=0)

    def _wanted_before_rounding(self, size: Tensor) -> Tensor:
        """The size that the bits must have before they are rounded, to have the wanted one afterwards."""
        if not self._rounds:
            return self.wanted_size()
        exact = self.quantizer.model_size(exact=True).detach().to(self._price)
        self._rounding.lerp_((exact / size).log(), ROUNDING_RATE)
        return self.wanted_size() / self._rounding.exp()

    def _move(self, logits: Sequence[nn.Parameter], directions: list[Tensor], distance: Tensor) -> None:
        """Move all logits against their directions, none by more than ``LARGEST_MOVE``."""
        longest = torch.stack([each.to(self._price) for each in torch._foreach_norm(directions, torch.inf)]).max()
        distance = distance * (LARGEST_MOVE / (longest * distance.abs()).clamp(min=LARGEST_MOVE))
        with torch.no_grad():
            for logit, direction in zip(logits, directions, strict=True):
                local(logit).sub_(local(placed_like(direction * distance.to(direction), logit)))

    def _sum_of_products(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """The inner product of two lists of tensors, 0-dim, on the price's device."""
        products = [torch.dot(a.to(b), b).to(self._price) for a, b in zip(left, right, strict=True)]
        return torch.stack(products).sum()

    # -- resuming ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept, beside model and optimizer, for a training to go on as if it had not stopped."""
        return {
            "steps": self.steps,
            "controls": self._controls,
            "price": self._price.clone(),
            "start": self._start.clone(),
            "rounding": self._rounding.clone(),
            "frozen": self.quantizer.bits_frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict`; frozen bits are frozen again, at the widths that the model's logits give.

        Load the model's state before or after; the target, schedule and total_steps are those given to this object.
        """
        self.steps, self._controls = int(state["steps"]), int(state["controls"])
        self._price.copy_(state["price"])
        self._start.copy_(state["start"])
        self._rounding.copy_(state["rounding"])
        if state["frozen"]:
            self.quantizer.freeze_bits(straight_through=self.straight_through)
        elif self.quantizer.bits_frozen:
            self.quantizer.unfreeze_bits()


def _check_schedule(total_steps: int, warm_up: float, reach_at: float, freeze_at: float) -> None:
    if total_steps < 1 or total_steps != int(total_steps):
        raise ValueError(f"SizeTarget: total_steps must be a whole number of at least 1, got {total_steps}")
    if not 0 <= warm_up < reach_at <= freeze_at <= 1:
        raise ValueError(
            "SizeTarget: expected shares of the training 0 <= warm_up < reach_at <= freeze_at <= 1, got "
            f"warm_up={warm_up}, reach_at={reach_at}, freeze_at={freeze_at}"
        )


def _megabytes(mb: float | None, bits_per_weight: float | None, count: int) -> float:
    if mb is not None and bits_per_weight is None:
        return check_number("SizeTarget", "mb", mb)
    if bits_per_weight is not None and mb is None:
        return check_number("SizeTarget", "bits_per_weight", bits_per_weight) * count / BITS_PER_MB
    raise ValueError(
        f"SizeTarget: expected exactly one of mb and bits_per_weight, got mb={mb}, bits_per_weight={bits_per_weight}"
    )
