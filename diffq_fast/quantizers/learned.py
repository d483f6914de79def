"""What quantizers with a learned parameter for each weight share: its registration, the optimizer, ties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .base import BaseQuantizer
from .selection import QuantizedParameter


class LearnedQuantizer(BaseQuantizer):
    """Base of the quantizers that learn something for each weight: logits, or a scale. Not used by itself.

    The learned parameter is registered on the module that owns the weight, as ``<name><suffix>``.
    """

    suffix: str

    def _refuse_second(self, model: nn.Module, suffix: str) -> None:
        for name, _ in model.named_parameters():
            if name.endswith(suffix):
                raise RuntimeError(
                    f"{type(self).__name__}: the model already has a parameter {name}, which ends in {suffix!r}; "
                    "detach the quantizer that is on this model, or choose another suffix"
                )

    def _register_learned(self, suffix: str, initial: Callable[[QuantizedParameter], Tensor]) -> None:
        """Give every untied weight its learned parameter, of the values ``initial(entry)``."""
        self.suffix = suffix
        self._optimizer_setup = False
        self._firsts = [entry for entry in self._qparams if entry.other is None]
        for entry in self._firsts:
            entry.learned_name = entry.name + suffix
            entry.module.register_parameter(entry.learned_name, nn.Parameter(initial(entry)))

    def _logits(self) -> list[nn.Parameter]:
        """The learned parameters, in selection order."""
        return [entry.logit for entry in self._firsts]

    def _begin(self) -> None:
        """Training may start."""
        self._optimizer_setup = True

    def _add_to_optimizer(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        """Add the learned parameters to ``optimizer`` as one group with these options, and begin."""
        who = f"{type(self).__name__}.setup_optimizer"
        if self._optimizer_setup:
            raise RuntimeError(
                f"{who}: an optimizer was set up already (or no_optimizer() was called); call "
                "clear_optimizer(optimizer) first"
            )
        learned = self._logits()
        held = {id(param) for group in optimizer.param_groups for param in group["params"]}
        if any(id(param) in held for param in learned):
            raise RuntimeError(
                f"{who}: the optimizer already holds what the quantizer learns ({self.suffix}); create the "
                "optimizer before the quantizer"
            )
        if learned:
            optimizer.add_param_group({"params": learned, **options})
        self._begin()

    def no_optimizer(self) -> None:
        """Say that no optimizer will train what is learned, or one set up by hand: training forwards may begin."""
        self._begin()

    def clear_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Remove what is learned, and what the optimizer remembers of it, from all groups of ``optimizer``."""
        learned = {id(param) for param in self._logits()}
        for group in optimizer.param_groups:
            for param in group["params"]:
                if id(param) in learned:
                    optimizer.state.pop(param, None)
            group["params"] = [param for param in group["params"] if id(param) not in learned]
        self._optimizer_setup = False

    def check_unused(self) -> None:
        """Zero the learned gradient of weights that took no part in the loss (their own is None or all zero)."""
        for entry in self._firsts:
            logit, grad = entry.logit, entry.param.grad
            if logit.grad is None:
                continue
            if grad is None:
                logit.grad.zero_()
            else:
                logit.grad.mul_((grad != 0).any())

    def _before_training_forward(self) -> None:
        if not self._optimizer_setup:
            raise RuntimeError(
                f"{type(self).__name__}: call setup_optimizer(optimizer), or no_optimizer(), before the first "
                "training forward"
            )
