"""What the callbacks share: a quantizer in a training whose loop is somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..quantizers.base import BaseQuantizer
from ..quantizers.registry import schemes
from ..quantizers.sharded import ShardedForwards
from ..quantizers.shards import whole, write
from ..quantizers.size_target import LearnsBits, SizeTarget
from .own_group import OwnGroup

BITS_LR = 0.02  # for Adam, where bits are learned

MakesQuantizer = Callable[[nn.Module], BaseQuantizer]


def diffq(model: nn.Module) -> BaseQuantizer:
    """What a callback attaches that is given no quantizer: a DiffQuantizer with its own defaults."""
    return schemes()["DiffQuantizer"].quantizer(model)


@dataclass(frozen=True)
class Goal:
    """What a training is to reach.

    quantizer: makes one for the model, such as ``partial(DiffQuantizer, group_size=64)``; or one on the model already.
    penalty: loss per MB. mb, bits_per_weight: or a size, for a SizeTarget, with size_target as its further arguments.
    bits_lr: learning rate of what is learned; None: 0.02 where that is bits, else the optimizer's own.
    """

    quantizer: MakesQuantizer | BaseQuantizer
    penalty: float | None = None
    mb: float | None = None
    bits_per_weight: float | None = None
    bits_lr: float | None = None
    size_target: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_target(self) -> bool:
        return self.mb is not None or self.bits_per_weight is not None


class QuantizedTraining:
    """Sets up a quantizer, adds the price of its size to the gradients, and leads it to a size.

    The loop's owner calls :meth:`attach` before its optimizer is made, :meth:`begin` before the first step,
    :meth:`add_price` once a step while gradients are summed up, and :meth:`step` behind the optimizer's step.

    Args:
        who: whose texts these are, in errors.
        goal: what the training is to reach.

    Raises:
        ValueError: both a penalty and a size are asked for.
    """

    def __init__(self, who: str, goal: Goal) -> None:
        if goal.penalty is not None and goal.has_target:
            raise ValueError(
                f"{who}: expected penalty, or a size (mb or bits_per_weight), got both; SizeTarget finds the penalty"
            )
        if goal.size_target and not goal.has_target:
            raise ValueError(f"{who}: size_target has arguments of a SizeTarget, but neither mb nor bits_per_weight is")
        self.who, self.goal = who, goal
        self.target: SizeTarget | None = None
        self._quantizer: BaseQuantizer | None = None
        self._groups: list[OwnGroup] = []
        self._called: Any = None  # the hook that waits for the model's first call
        self._was_called = False

    # -- before the training -------------------------------------------------------------------------------------------

    @property
    def quantizer(self) -> BaseQuantizer:
        if self._quantizer is None:
            raise RuntimeError(f"{self.who}: the training has not been set up yet, so there is no quantizer")
        return self._quantizer

    def attach(self, model: nn.Module) -> None:
        """Put the quantizer on the model, before an optimizer is made of its parameters; once."""
        if self._quantizer is not None:
            self._check_same(model)
            return
        given = self.goal.quantizer
        quantizer = given if isinstance(given, BaseQuantizer) else given(model)
        if not isinstance(quantizer, BaseQuantizer):
            raise TypeError(
                f"{self.who}: quantizer must be a quantizer of diffq_fast or make one of a model, got "
                f"{type(given).__name__}, which gave {type(quantizer).__name__}"
            )
        self._quantizer = quantizer
        self._check_same(model)
        if (self.goal.penalty is not None or self.goal.has_target) and not isinstance(quantizer, LearnsBits):
            raise TypeError(
                f"{self.who}: a penalty or a size needs a quantizer that learns bits (DiffQuantizer, RateQuantizer), "
                f"got {type(quantizer).__name__}"
            )
        quantizer.no_optimizer()
        self._called = quantizer.model.register_forward_pre_hook(self._see_call)

    def _see_call(self, *_: Any) -> None:
        self._was_called = True

    def check_called(self, advice: str) -> None:
        """RuntimeError where the first gradients are there and the model has not been called: a quantizer acts in calls
        of the model that it is on, and not in those of its parts or of its ``forward``."""
        if self._called is None:
            return
        if not self._was_called:
            raise RuntimeError(
                f"{self.who}: the training has not called the {type(self.quantizer.model).__name__} that is quantised, "
                f"so its weights had no noise; {advice}"
            )
        self._called.remove()
        self._called = None

    def _check_same(self, model: nn.Module) -> None:
        if all(module is not self.quantizer.model for module in model.modules()):
            raise RuntimeError(
                f"{self.who}: the model that is trained is not the one that its quantizer is on; make a new callback "
                "for a new model (Trainer's model_init makes one for each training: give it model= instead)"
            )

    def begin(self, optimizers: Iterable[torch.optim.Optimizer], total_steps: int) -> None:
        """The training begins, or goes on.

        Args:
            optimizers: those of the training. What is learned gets a group in the one that holds it; where none does,
                it is added to the only one.
            total_steps: of the optimizer, in the whole training.
        """
        ShardedForwards(self.who, self.quantizer.selection).look()  # a first forward would, but sizes are asked before
        self.take_groups(optimizers)
        if self.goal.has_target:
            self.target = SizeTarget(
                self.quantizer,  # type: ignore[arg-type]  # attach() has looked
                self.goal.mb,
                self.goal.bits_per_weight,
                total_steps=total_steps,
                **self.goal.size_target,
            )

    def take_groups(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Give what is learned its learning rate in the optimizers of the training."""
        self.end()
        learned, optimizers = self.quantizer.learned_parameters(), list(optimizers)
        own = {id(param) for param in learned}
        lr = self.goal.bits_lr
        if lr is None and isinstance(self.quantizer, LearnsBits):
            lr = BITS_LR
        held = [each for each in optimizers if own & {id(p) for group in each.param_groups for p in group["params"]}]
        if learned and not held:
            if len(optimizers) != 1:
                raise RuntimeError(
                    f"{self.who}: none of {len(optimizers)} optimizers holds what the quantizer learns; make one of "
                    "quantizer.parameter_groups()"
                )
            self.quantizer.clear_optimizer(optimizers[0])
            self.quantizer.setup_optimizer(optimizers[0], **({} if lr is None else {"lr": lr}))
        elif lr is not None:
            ends = [weight.ends for weight in self.quantizer.weights if weight.ends is not None]
            self._groups = [OwnGroup(each, learned, lr, ends) for each in held]

    def end(self) -> None:
        """Let the optimizers go."""
        for group in self._groups:
            group.remove()
        self._groups = []

    def repair(self) -> None:
        """Put the optimizers right where a step has failed half way."""
        for group in self._groups:
            group.take()

    # -- a step --------------------------------------------------------------------------------------------------------

    def add_price(self, scaled: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
        """Add the gradient of the penalty to those of what is learned: as if the penalty were part of the loss.

        Only what is learned has one, so the loss itself need not be touched, and is logged as it is.

        Args:
            scaled: what the loop does to its loss before its backward (a GradScaler, accumulation).
        """
        target, penalty = self.target, self.goal.penalty
        if target is None and penalty is None:
            return
        learned = [param for param in self.quantizer.learned_parameters() if param.requires_grad]
        with torch.enable_grad():
            price = target.penalty() if penalty is None else penalty * self.quantizer.model_size()  # type: ignore[union-attr]
            grads = torch.autograd.grad(scaled(price), learned, allow_unused=True)
        for param, grad in zip(learned, grads, strict=True):
            if grad is not None:
                param.grad = grad if param.grad is None else param.grad + grad

    def step(self) -> None:
        """The optimizer has stepped, and the gradients are still there."""
        if self.target is not None:
            self.target.step()

    def sizes(self) -> dict[str, float]:
        """What logs show: size in MB, mean bits of the quantised weights, price of a MB. Waits for the device."""
        values = {"size_mb": self.quantizer.true_model_size()}
        per_weight = getattr(self.quantizer, "bits_per_weight", None)
        if per_weight is not None:
            counts = {weight.name: weight.parameter.numel() for weight in self.quantizer.weights}
            means = per_weight()
            total = sum(counts[name] for name in means)
            values["bits"] = sum(mean * counts[name] for name, mean in means.items()) / max(total, 1)
        if self.target is not None:
            values["price_per_mb"] = float(self.target.price)
        return values

    # -- resuming ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep beside model and optimizer; what is learned is in it too, since not every
        checkpoint holds it (PEFT's does not). Of a sharded model every process asks, and has all of it."""
        learned = {name: whole(param).cpu().clone() for name, param in self._learned().items()}
        return {"learned": learned, "target": None if self.target is None else self.target.state_dict()}

    def _learned(self) -> dict[str, nn.Parameter]:
        """What is learned, by the weight's name."""
        weights = [weight for weight in self.quantizer.weights if weight.tied_to is None]
        learned = {weight.name: weight.learned for weight in weights if weight.learned is not None}
        return learned | {f"range of {weight.name}": weight.ends for weight in weights if weight.ends is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict`, behind :meth:`begin`.

        Raises:
            ValueError: it is that of another quantizer or model.
        """
        own = self._learned()
        stored = state["learned"]
        wrong = sorted(own.keys() ^ stored.keys())
        wrong += [name for name in own if name in stored and own[name].shape != stored[name].shape]
        if wrong:
            raise ValueError(
                f"{self.who}: the checkpoint was made with another quantizer: {', '.join(wrong[:3])} do not fit; give "
                "the arguments that it was made with"
            )
        for name, param in own.items():
            write(param, stored[name].to(param.device))
        if self.target is not None and state["target"] is not None:
            self.target.load_state_dict(state["target"])
