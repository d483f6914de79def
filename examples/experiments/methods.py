"""The methods that are compared, and how each is attached to a network."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import mnist
import torch
from torch import Tensor, nn

import diffq_fast

from .task import Recipe

BITS = (2, 3, 4, 8)
TIMES = (4, 8, 12)  # how many times smaller than float32, for SizeTarget


@dataclass(frozen=True)
class Method:
    """One column of settings; those that a kind does not use stay 0 or at their default."""

    kind: str  # float32, ptq, qat, lsq, diffq or target
    bits: int = 0
    penalty: float = 0.0  # loss per MB
    times: float = 0.0
    group_size: int = 8
    noise: str = "gaussian"
    range_scope: str = "tensor"
    renewed: bool = False  # evaluated with batch statistics that were taken anew, with the weights of the evaluation

    @property
    def label(self) -> str:
        """Its name in tables, and with the seed the name of a run."""
        return self._trained + (", statistics anew" if self.renewed else "")

    @property
    def _trained(self) -> str:
        if self.kind in ("diffq", "target"):
            amount = f"penalty {self.penalty:g}" if self.kind == "diffq" else f"{self.times:g}x"
            others = [f"g={self.group_size}"] if self.group_size != 8 else []
            others += [self.noise] if self.noise != "gaussian" else []
            others += ["range per group"] if self.range_scope != "tensor" else []
            return ", ".join([f"{'DiffQ' if self.kind == 'diffq' else 'SizeTarget'} {amount}", *others])
        return "float32" if self.kind == "float32" else f"{self.kind.upper()} {self.bits} bits"

    def stored(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Attached:
    """A method on a network: what to add to the loss, and what to do after the optimizer's step."""

    quantizer: Any = None
    penalty: Callable[[], Tensor | float] = lambda: 0.0
    after_step: Callable[[], None] = lambda: None


def attach(
    method: Method, network: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> Attached:
    """Put `method` on a network whose optimizer has just been made."""
    if method.kind == "float32":
        return Attached()
    plain = mnist.float32_megabytes(network)
    shared: dict[str, Any] = {"min_size": recipe.min_size, "float16": True}
    if method.kind in ("ptq", "qat"):
        quantizer: Any = diffq_fast.UniformQuantizer(network, bits=method.bits, qat=method.kind == "qat", **shared)
        return Attached(quantizer)
    if method.kind == "lsq":
        quantizer = diffq_fast.LSQ(network, bits=method.bits, **shared)
        quantizer.setup_optimizer(optimizer)
        return Attached(quantizer)
    quantizer = diffq_fast.DiffQuantizer(
        network, group_size=method.group_size, noise=method.noise, range_scope=method.range_scope, **shared
    )
    quantizer.setup_optimizer(optimizer, lr=recipe.bits_rate)
    if method.kind == "diffq":
        return Attached(quantizer, lambda: method.penalty * quantizer.model_size())
    target = diffq_fast.SizeTarget(quantizer, mb=plain / method.times, total_steps=steps)
    return Attached(quantizer, target.penalty, target.step)


def core_methods(recipe: Recipe) -> list[Method]:
    """Those that every seed runs. Post-training quantisation comes with float32, see `grid.units`."""
    methods = [Method("float32"), *(Method("qat", bits=bits) for bits in BITS), Method("lsq", bits=4)]
    methods += [Method("diffq", penalty=penalty) for penalty in recipe.penalties]
    return methods + [Method("target", times=times) for times in TIMES]


def secondary_methods(recipe: Recipe) -> list[Method]:
    """Group size, noise and scope of the range, at the second penalty; one seed."""
    others: list[dict[str, Any]] = [{"group_size": 4}, {"group_size": 16}, {"noise": "uniform"}]
    others.append({"group_size": 16, "range_scope": "group"})
    return [Method("diffq", penalty=recipe.penalties[1], **other) for other in others]
