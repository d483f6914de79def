"""Counting optimizer steps: fused optimizers write to parameters without moving their version counters."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

_steps = 0


def _count(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count)


def optimizer_steps() -> int:
    """Steps of all optimizers of this process since the package was imported."""
    return _steps
