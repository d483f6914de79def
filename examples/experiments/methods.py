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
# The learned bits' settings: with a penalty those of the paper, with SizeTarget what was best on validation data.
DIFFQ = {"group_size": 8, "noise": "gaussian", "range_scope": "tensor", "straight_through": False}
TARGET = {"group_size": 64, "noise": "uniform", "range_scope": "tensor", "straight_through": True}
RATE: dict[str, Any] = {}  # of RateQuantizer: its defaults
STEPS_RATE = 1e-2  # peak learning rate of its log-steps
NOISE_TO_THE_END = {"reach_at": 0.5, "freeze_at": 0.9, "straight_through": False}  # of SizeTarget


@dataclass(frozen=True)
class Method:
    """One column of settings; those that a kind does not use stay 0 or at their default. Learned bits are made by
    :func:`diffq` and :func:`size_target`."""

    kind: str  # float32, ptq, qat, lsq, diffq, target, rate or packed; "taught " before it: with a teacher
    bits: int = 0
    penalty: float = 0.0  # loss per MB
    times: float = 0.0
    group_size: int = 8
    noise: str = "gaussian"
    range_scope: str = "tensor"
    straight_through: bool = False  # rounded weights instead of noise once the bits are frozen
    renewed: bool = False  # evaluated with batch statistics that were taken anew, with the weights of the evaluation

    @property
    def base(self) -> str:
        """Its kind without a teacher."""
        return self.kind.removeprefix("taught ")

    @property
    def label(self) -> str:
        """Its name in tables, and with the seed the name of a run."""
        taught = ", taught" if self.base != self.kind else ""
        return self._trained + taught + (", statistics anew" if self.renewed else "")

    @property
    def _trained(self) -> str:
        if self.base in ("diffq", "target"):
            first = f"DiffQ penalty {self.penalty:g}" if self.base == "diffq" else f"SizeTarget {self.times:g}x"
            usual = DIFFQ if self.base == "diffq" else TARGET
            names = {
                "group_size": f"g={self.group_size}",
                "noise": self.noise,
                "range_scope": f"range per {self.range_scope}",
                "straight_through": "straight through" if self.straight_through else "noise to the end",
            }
            return ", ".join([first, *(name for key, name in names.items() if getattr(self, key) != usual[key])])
        if self.base in ("rate", "packed"):
            return f"Rate {self.times:g}x" + (", packed half-way" if self.base == "packed" else "")
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
    if method.kind == "rate":
        quantizer = diffq_fast.RateQuantizer(network, **RATE, **shared)
        quantizer.setup_optimizer(optimizer, lr=STEPS_RATE)
        target = diffq_fast.SizeTarget(quantizer, mb=plain / method.times, total_steps=steps)
        return Attached(quantizer, target.penalty, target.step)
    quantizer = diffq_fast.DiffQuantizer(
        network, group_size=method.group_size, noise=method.noise, range_scope=method.range_scope, **shared
    )
    quantizer.setup_optimizer(optimizer, lr=recipe.bits_rate)
    if method.kind == "diffq":
        return Attached(quantizer, lambda: method.penalty * quantizer.model_size())
    schedule = {} if method.straight_through else NOISE_TO_THE_END
    target = diffq_fast.SizeTarget(quantizer, mb=plain / method.times, total_steps=steps, **schedule)
    return Attached(quantizer, target.penalty, target.step)


def diffq(penalty: float, **changed: Any) -> Method:
    """Learned bits with a penalty in loss per MB, noise in every step."""
    return Method("diffq", penalty=penalty, **DIFFQ | changed)


def size_target(times: float, kind: str = "target", **changed: Any) -> Method:
    """Learned bits led to a size, rounded weights once it is reached."""
    return Method(kind, times=times, **TARGET | changed)


def core_methods(recipe: Recipe) -> list[Method]:
    """Those that every seed runs. Post-training quantisation comes with float32, see `training.run`."""
    methods = [Method("float32"), *(Method("qat", bits=bits) for bits in BITS), Method("lsq", bits=4)]
    return methods + [diffq(penalty) for penalty in recipe.penalties] + [size_target(times) for times in TIMES]


def coded_methods(recipe: Recipe) -> list[Method]:
    """RateQuantizer led to coded sizes, begun with a packing half-way, or with a teacher too; DiffQ with a teacher; and
    the float32 networks that they are held against."""
    methods = [Method("float32"), *(Method(kind, times=times) for kind in recipe.coded for times in recipe.coded_times)]
    return methods + [size_target(times, "taught target") for times in recipe.taught_times]


def secondary_methods(recipe: Recipe) -> list[Method]:
    """One seed. Group size, noise and scope of the range, at the second penalty; and at an eighth of float32, what
    each setting of SizeTarget is worth."""
    changes: list[dict[str, Any]] = [{"group_size": 4}, {"group_size": 16}, {"noise": "uniform"}]
    changes.append({"group_size": 16, "range_scope": "group"})
    back: list[dict[str, Any]] = [{name: DIFFQ[name]} for name in ("group_size", "noise", "straight_through")]
    methods = [diffq(recipe.penalties[1], **change) for change in changes]
    return methods + [size_target(8, **change) for change in back]
