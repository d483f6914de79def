"""Learning rate schedulers that were made before the optimizer got another group, and cannot go on with it."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, SequentialLR


def refuse_schedulers_without(who: str, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
    """RuntimeError where a scheduler of ``optimizer`` would fail at its next step if ``group`` were added.

    Many of torch's compute each group from its own options, and take a new one as it comes. Some count the groups when
    they are made.
    """
    groups = [*optimizer.param_groups, {**optimizer.defaults, **group}]
    schedulers = list(_schedulers_of(optimizer))
    begun_anew = {id(each) for those in schedulers if isinstance(those, SequentialLR) for each in those._schedulers}
    for scheduler in schedulers:
        failure = _failure(scheduler, groups, id(scheduler) in begun_anew)
        if failure is not None:
            raise RuntimeError(
                f"{who}: the optimizer's {type(scheduler).__name__} was made for {len(groups) - 1} groups of "
                f"parameters, and cannot go on with one more ({failure}); make the scheduler after setup_optimizer"
            )


def _schedulers_of(optimizer: torch.optim.Optimizer) -> Iterator[LRScheduler]:
    if not any("initial_lr" in group for group in optimizer.param_groups):  # which a scheduler writes when it is made
        return
    for each in gc.get_objects():
        if issubclass(type(each), LRScheduler) and vars(each).get("optimizer") is optimizer:
            yield each


def _failure(scheduler: LRScheduler, groups: list[dict[str, Any]], begun_anew: bool) -> str | None:
    """How one of the scheduler's next steps would fail with these groups. A copy is asked, so that nothing changes.

    begun_anew: a SequentialLR will call ``step(0)``, which many answer by a closed form of the rates they began with.
    """
    if type(scheduler).get_lr is LRScheduler.get_lr:  # it has no rates of its own: it steps others, or sets them
        return None
    asked = copy.copy(scheduler)
    vars(asked)["optimizer"] = SimpleNamespace(param_groups=[dict(group) for group in groups])
    asked.last_epoch += 1  # as step does
    asked._step_count += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that get_lr is not called by step
            rates = list(asked.get_lr())
            if begun_anew and hasattr(asked, "_get_closed_form_lr"):
                asked.last_epoch = 0
                rates = list(asked._get_closed_form_lr())
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None if len(rates) == len(groups) else f"it gives {len(rates)} learning rates"
