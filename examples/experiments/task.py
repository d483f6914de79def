"""What an experiment's task gives: data, a network, the loss of one batch, one score for each held-out example."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Recipe:
    """How every method trains on a task.

    The network is trained from scratch in float32 for `start_steps`. From there every method, float32 included,
    trains for another `steps`, with the same batches, optimizer (AdamW) and schedule.
    """

    start_steps: int
    steps: int
    batch: int
    start_rate: float  # peak learning rate from scratch
    rate: float  # peak learning rate after that
    weight_decay: float
    min_size: float  # MB: parameters of up to this size stay in half precision, with every method but float32
    bits_rate: float  # peak learning rate of DiffQ's logits
    penalties: tuple[float, ...]  # of DiffQ, loss per MB, from large to small models
    coded_times: tuple[float, ...] = (16,)  # how many times smaller than float32, for RateQuantizer
    coded: tuple[str, ...] = ("rate", "packed")  # kinds of methods
    taught_times: tuple[float, ...] = ()  # for DiffQ with a teacher, beside a kind "taught packed"
    packed_group_size: int | None = None  # elements that share a step there: a row of an embedding, if there is one

    def shortened(self, share: float) -> "Recipe":
        """The same with fewer steps."""
        start, steps = (max(2, int(count * share)) for count in (self.start_steps, self.steps))
        return replace(self, start_steps=start, steps=steps)

    def stored(self) -> dict[str, Any]:
        """All that two runs of a table must have in common; further penalties, sizes and methods can be added to it."""
        added = ("penalties", "coded_times", "coded", "taught_times", "packed_group_size")
        return {name: value for name, value in asdict(self).items() if name not in added}


class Task(ABC):
    """Base of the tasks."""

    name: ClassVar[str]
    metric: ClassVar[str]  # name and unit, for tables
    higher_is_better: ClassVar[bool]
    aim: ClassVar[float]  # how much worse than float32 still counts as no loss, in the units of `difference`
    difference_unit: ClassVar[str]
    recipe: Recipe

    @abstractmethod
    def load(self, validation: bool = False) -> None:
        """Read the data. `validation`: choices are made on a part of the training data that takes the place of the
        held-out data, and is not trained on."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with weights drawn from torch's generator."""

    @abstractmethod
    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """Training batches without end."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Of one batch, 0-dim."""

    def distance(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Of the network's output from a teacher's, 0-dim: the divergence of the classes' chances."""
        logits = (wanted.flatten(0, -2).log_softmax(-1), found.flatten(0, -2).log_softmax(-1))
        return F.kl_div(logits[1], logits[0], log_target=True, reduction="batchmean")

    @abstractmethod
    def scores(self, network: nn.Module) -> np.ndarray:
        """One score for each held-out example, [examples]; the network is in eval mode, without gradients."""

    @abstractmethod
    def quality(self, scores: np.ndarray) -> float:
        """The metric of all examples."""

    @abstractmethod
    def differences(self, scores: np.ndarray, plain: np.ndarray) -> np.ndarray:
        """Per example, the share of the metric's change from `plain`: their mean is the difference in
        `difference_unit`, positive where `scores` are better."""


def mean_score(network: nn.Module, task: Task) -> np.ndarray:
    """The task's scores of a network, which is put into eval mode."""
    network.eval()
    with torch.no_grad():
        return task.scores(network)
