"""A group of their own for some of an optimizer's parameters, for the time of each step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class OwnGroup:
    """Gives parameters a learning rate of their own, and no weight decay, in an optimizer that somebody else made.

    Loops such as Trainer's make one optimizer of all parameters of a model, then a scheduler that counts its groups,
    and checkpoints that fit both. So the group is there only while the optimizer steps: hooks put it in and take it
    away. Moments stay where they are, since an optimizer keeps them by parameter.

    Args:
        optimizer: one of torch's, or a subclass.
        params: those that get the group. Groups of the optimizer that hold nothing else stay as they are.
        lr: while the optimizer's schedule is at its start; it follows the schedule of the group that holds them.
        undecayed: further ones, which keep the learning rate that they have, and lose the weight decay.

    Raises:
        TypeError: it is no optimizer of torch, which tells when it steps.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Iterable[nn.Parameter],
        lr: float,
        undecayed: Iterable[nn.Parameter] = (),
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"diffq_fast: expected an optimizer of torch to give bits a learning rate of their own, got a "
                f"{type(optimizer).__name__}; make one of quantizer.parameter_groups() and give it to the Trainer"
            )
        self.optimizer, self.lr = optimizer, lr
        self._own = {id(param) for param in params}
        self._undecayed = {id(param) for param in undecayed}
        self._split: list[tuple[dict[str, Any], list[nn.Parameter]]] = []
        self._count = 0
        self._handles = [
            optimizer.register_step_pre_hook(lambda *_: self.put()),
            optimizer.register_step_post_hook(lambda *_: self.take()),
        ]

    def put(self) -> None:
        """Put the group in."""
        self.take()  # where a step has failed half way
        groups = self.optimizer.param_groups
        self._count = len(groups)
        for group in list(groups):
            parts = [[param for param in group["params"] if id(param) in ids] for ids in (self._own, self._undecayed)]
            left = len(group["params"]) - len(parts[0]) - len(parts[1])
            if not any(parts) or not (left or all(parts)):
                continue
            self._split.append((group, group["params"]))
            start = group.get("initial_lr")
            lr = self.lr * (group["lr"] / start) if start else self.lr
            for part, rate in zip(parts, (lr, group["lr"]), strict=True):
                if part:
                    groups.append({**group, "params": part, "lr": rate, "weight_decay": 0.0})
            own = self._own | self._undecayed
            group["params"] = [param for param in group["params"] if id(param) not in own]

    def take(self) -> None:
        """Take the group away: the optimizer is as it was made."""
        if self._split:
            del self.optimizer.param_groups[self._count :]
        for group, params in self._split:
            group["params"] = params
        self._split = []

    def remove(self) -> None:
        """Let the optimizer go."""
        self.take()
        for handle in self._handles:
            handle.remove()
