"""What a quantizer learns for each weight: its registration on the model, and its place in an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from .input_quantizer import without_logits
from .schedulers import refuse_schedulers_without
from .selection import QuantizedParameter, learned_of
from .shards import is_managed, placed_like, whole


class LearnedParameters:
    """One parameter for each untied weight, ``<name><suffix>`` of the module that owns the weight.

    Args:
        who: the quantizer's name, for errors.
        suffix: of the parameters' names.
        entries: the untied weights.
        initial: gives a weight's parameter its first values.
    """

    def __init__(
        self,
        who: str,
        suffix: str,
        entries: Sequence[QuantizedParameter],
        initial: Callable[[QuantizedParameter], Tensor],
    ) -> None:
        self.suffix = suffix
        self.may_train = False
        self._given: list[nn.Parameter] = []
        self._who, self._entries = who, entries
        for entry in entries:
            entry.learned_name = entry.name + suffix
            start = initial(entry)
            if is_managed(entry.module):
                start = placed_like(start, entry.param)
            entry.module.register_parameter(entry.learned_name, nn.Parameter(start))

    def add_ends(self, suffix: str, initial: Callable[[QuantizedParameter], Tensor]) -> None:
        """Give each weight a second parameter, the ends of its ranges, with the further suffix ``suffix``."""
        for entry in self._entries:
            entry.ends_name = f"{entry.learned_name}{suffix}"
            entry.module.register_parameter(entry.ends_name, nn.Parameter(initial(entry)))

    @staticmethod
    def refuse_second(who: str, model: nn.Module, suffix: str) -> None:
        """RuntimeError when a parameter of the model has such a name already."""
        for name, _ in model.named_parameters():
            if name.endswith(suffix):
                raise RuntimeError(
                    f"{who}: the model already has a parameter {name}, which ends in {suffix!r}; "
                    "detach the quantizer that is on this model, or choose another suffix"
                )

    def parameters(self) -> list[nn.Parameter]:
        """In selection order."""
        return [entry.logit for entry in self._entries]

    def ends(self) -> list[nn.Parameter]:
        """The ends of ranges, where they are learned too."""
        return [entry.ends for entry in self._entries if entry.ends_name is not None]

    def _all(self) -> list[nn.Parameter]:
        return self.parameters() + self.ends()

    def detach(self) -> None:
        """Take the parameters off the model; sizes and exports go on reading them."""
        for entry in self._entries:
            if entry.learned_name is not None:
                entry.detached = entry.module._parameters.pop(entry.learned_name, entry.detached)
            if entry.ends_name is not None:
                entry.detached_ends = entry.module._parameters.pop(entry.ends_name, entry.detached_ends)

    # -- the optimizer -----------------------------------------------------------------------------------------------

    def add_to(self, optimizer: torch.optim.Optimizer, of_ends: dict[str, Any] | None = None, **options: Any) -> None:
        """Add the parameters to ``optimizer`` as one group with these options; training may begin.

        Ends of ranges get a group of their own, with the options ``of_ends``.
        """
        who = f"{self._who}.setup_optimizer"
        if self.may_train:
            raise RuntimeError(
                f"{who}: an optimizer was set up already (or no_optimizer() was called); call "
                "clear_optimizer(optimizer) first"
            )
        learned = self.parameters()
        held = {id(param) for group in optimizer.param_groups for param in group["params"]}
        if any(id(param) in held for param in learned):
            raise RuntimeError(
                f"{who}: the optimizer already holds what the quantizer learns ({self.suffix}); create the "
                "optimizer before the quantizer"
            )
        if learned:
            group = {"params": learned, **options}
            refuse_schedulers_without(who, optimizer, group)
            optimizer.add_param_group(group)
        ends = self.ends()
        if ends:
            optimizer.add_param_group({"params": ends, **(of_ends or {})})
        self.may_train, self._given = True, learned

    def groups(self, model: nn.Module, weights: dict[str, Any], learned: dict[str, Any]) -> list[dict[str, Any]]:
        """The parameters of ``model`` as one group with the first options, these as one with the second; training may
        begin. Ends of ranges, where there are any, are a third, with the first options and without weight decay."""
        who = f"{self._who}.parameter_groups"
        if self.may_train:
            raise RuntimeError(
                f"{who}: an optimizer was set up already (or no_optimizer() was called); make the groups once, or call "
                "clear_optimizer(optimizer) first"
            )
        own = {id(param) for param in self._all()}
        every = without_logits(model)
        if not own <= {id(param) for param in every}:
            raise ValueError(
                f"{who}: model must hold the quantised weights and what is learned for them, got a "
                f"{type(model).__name__} without; give the quantizer's model, or a module around it"
            )
        self.may_train, self._given = True, self.parameters()
        made = [
            {"params": [param for param in every if id(param) not in own], **weights},
            {"params": self.parameters(), **learned},
        ]
        return [*made, {"params": self.ends(), **weights, "weight_decay": 0.0}] if self.ends() else made

    def remove_from(self, optimizer: torch.optim.Optimizer) -> None:
        """Remove the parameters, and what the optimizer remembers of them, from all its groups."""
        learned = {id(param) for param in self._all()}
        for group in optimizer.param_groups:
            for param in group["params"]:
                if id(param) in learned:
                    optimizer.state.pop(param, None)
            group["params"] = [param for param in group["params"] if id(param) not in learned]
        self.may_train, self._given = False, []

    def refuse_replaced(self) -> None:
        """RuntimeError where an optimizer holds other parameters than the model: sharding has made new ones since."""
        if self._given and any(map(is_not, self._given, self.parameters())):
            raise RuntimeError(
                f"{self._who}: the model was sharded after setup_optimizer, and the optimizer still holds the "
                "parameters from before, which nothing reads any more; make the optimizer after fully_shard or "
                "parallelize_module, and call setup_optimizer then"
            )

    def zero_unused(self) -> None:
        """Zero the gradient of what belongs to weights that took no part in the loss."""
        for entry in self._entries:
            grad = entry.param.grad
            for learned in learned_of([entry]):
                if learned.grad is not None and grad is None:
                    learned.grad.zero_()
                elif learned.grad is not None and grad is not None:
                    learned.grad.mul_((whole(grad) != 0).any())

    def refuse_training(self) -> RuntimeError:
        """The error of a training forward that comes too early."""
        return RuntimeError(
            f"{self._who}: call setup_optimizer(optimizer), or no_optimizer(), before the first training forward"
        )
