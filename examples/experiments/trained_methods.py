"""The methods that MiniLM is trained with at equal steps: each attached to it, and written to a file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import diffq_fast
from diffq_fast.packed.checkpoint import MEGABYTE

from .distillation import Distillation, Student
from .hqq_training import attach_hqq, save_hqq

BITS_LR, HQQ_LR = 5e-2, 1e-3  # highest learning rates: of DiffQ's logits; of HQQ's logarithms of scales, and zeros
DIFFQ: dict[str, Any] = {"group_size": 64, "noise": "uniform"}
RANGES: dict[str, dict[str, Any]] = {
    "tensor": {"learn_range": True},
    "group": {"range_scope": "group", "learn_range": True, "short_ranges": True},
}


@dataclass(frozen=True)
class Method:
    """``bits``: of a level, or all told with DiffQ, which is led there; ``option``: HQQ's group, or DiffQ's scope."""

    name: str
    bits: float
    option: Any = None

    @property
    def label(self) -> str:
        more = {"HQQ, then QAT": f", groups of {self.option}", "DiffQ": f", range per {self.option}"}
        return f"{self.name}, {self.bits:g} bits{more.get(self.name, '')}"


@dataclass
class Trained:
    """``write`` makes a file of the student, and returns what is in it, as floats, by the checkpoint's names."""

    student: Student
    write: Callable[[Path], dict[str, Tensor]]
    told: dict[str, float] = field(default_factory=dict)  # for the stored row


def attach(method: Method, model: nn.Module, weights_lr: float, run: Distillation) -> Trained:
    """Put a method on the model, with AdamW for the weights."""
    optimizer = torch.optim.AdamW(model.parameters(), weights_lr)
    if method.name == "HQQ, then QAT":
        learned = attach_hqq(model, int(method.bits), method.option)
        optimizer.add_param_group({"params": learned, "weight_decay": 0.0})
        levels = sum(each.numel() for each in model.parameters()) - sum(each.numel() for each in learned)
        size = (levels * method.bits + 16 * sum(each.numel() for each in learned)) / 8 / MEGABYTE
        student = Student(model, optimizer, (weights_lr, HQQ_LR), lambda: size)
        return Trained(student, lambda path: save_hqq(model, path))
    if method.name == "DiffQ":
        return _diffq(method, model, optimizer, weights_lr, run)
    bits, rates = method.bits, (weights_lr,)
    if method.name == "LSQ":
        quantizer: Any = diffq_fast.LSQ(model, bits=int(bits), float16=True)
        quantizer.setup_optimizer(optimizer)
        rates = (weights_lr, weights_lr)
    else:
        quantizer = diffq_fast.UniformQuantizer(model, bits=bits, qat=True, float16=True)
    return Trained(Student(model, optimizer, rates, quantizer.true_model_size), _writer(quantizer))


def _diffq(
    method: Method, model: nn.Module, optimizer: torch.optim.Optimizer, weights_lr: float, run: Distillation
) -> Trained:
    count = sum(each.numel() for each in model.parameters())
    quantizer = diffq_fast.DiffQuantizer(model, float16=True, **DIFFQ, **RANGES[method.option])
    quantizer.setup_optimizer(optimizer, lr=BITS_LR, range_lr=weights_lr)
    if not run.kept:
        quantizer.fit_ranges(bits=round(method.bits))
    megabytes = run.kept.get("mb", method.bits * count / 8 / MEGABYTE)
    target = diffq_fast.SizeTarget(quantizer, mb=megabytes, total_steps=run.steps)

    def penalty() -> Tensor | float:
        return 0.0 if quantizer.bits_frozen else target.penalty()

    rates = [weights_lr] * len(optimizer.param_groups)
    rates[1] = BITS_LR
    student = Student(model, optimizer, rates, quantizer.true_model_size, penalty, target.step)
    student.state = lambda: {"target": target.state_dict(), "mb": megabytes}
    student.restore = lambda kept: target.load_state_dict(kept["target"])
    return Trained(student, _writer(quantizer), {"target_mb": megabytes})


def _writer(quantizer: Any) -> Callable[[Path], dict[str, Tensor]]:
    def write(path: Path) -> dict[str, Tensor]:
        quantizer.model.eval()
        diffq_fast.save(quantizer, path)
        return diffq_fast.load(path)

    return write
