"""A method with a teacher: the float32 network after all its steps, which the small one is led to beside its task."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .methods import Attached, Method
from .task import Recipe, Task


def attach_taught(task: Task, attach: Callable[..., Attached], teacher: nn.Module) -> Callable[..., Attached]:
    """What `attach` does for the method without a teacher, with the distance from the teacher's output in its loss."""
    teacher.eval().requires_grad_(False)

    def attached(
        method: Method, network: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
    ) -> Attached:
        made = attach(replace(method, kind=method.base), network, optimizer, recipe, steps)
        penalty, last = made.penalty, Call()
        network.register_forward_hook(last.remember)

        def with_distance() -> Tensor | float:
            with torch.no_grad():
                wanted = teacher(*last.given)
            return penalty() + task.distance(last.output, wanted)

        made.penalty = with_distance
        return made

    return attached


class Call:
    """What a network was last called with in training, and what it gave."""

    given: tuple[Any, ...]
    output: Tensor

    def remember(self, network: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        if network.training:
            self.given, self.output = given, output
