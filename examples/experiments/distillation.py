"""MiniLM led to the vectors of its own float model, a few hundred steps of an optimizer, for every method alike."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import minilm
from .sentences import JUDGED, batches, training_sentences

BATCH = 32  # sentences of a step, half of either source
CHECKPOINT = 20  # steps between two


@dataclass
class Student:
    """What is trained. ``rates``: the highest learning rate of each of the optimizer's groups; ``megabytes``: what a
    file of it takes, for the progress."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    rates: Sequence[float]
    megabytes: Callable[[], float]
    penalty: Callable[[], Tensor | float] = lambda: 0.0
    after_step: Callable[[], object] = lambda: None
    state: Callable[[], dict[str, Any]] = dict  # to be kept beside those of the model and of the optimizer
    restore: Callable[[dict[str, Any]], None] = lambda kept: None  # from that, after those of the two


class Distillation:
    """Steps towards the float model, kept in a file: a start goes on where the last one ended.

    ``kept`` is what that file has, empty at a first start.
    """

    def __init__(self, path: Path, steps: int, seed: int) -> None:
        self.path, self.steps, self.seed = path, steps, seed
        torch.manual_seed(seed)
        self.kept: dict[str, Any] = torch.load(path) if path.exists() else {}
        self.step, self.seconds = self.kept.get("step", 0), self.kept.get("seconds", 0.0)
        self._teacher = minilm.pretrained(pooler=False)
        self._texts = [sorted(texts, key=len) for texts in training_sentences(JUDGED)]

    def train(self, student: Student, trial: int | None = None) -> None:
        """The steps that are left. ``seconds`` counts the processor's, of all starts.

        trial: end after so many steps, and keep nothing.
        """
        if self.kept:
            student.model.load_state_dict(self.kept["model"])
            student.optimizer.load_state_dict(self.kept["optimizer"])
            student.restore(self.kept)
            torch.set_rng_state(self.kept["generator"])
        last = self.steps if trial is None else trial
        while self.step < last:
            begin = time.process_time()
            for group, rate in zip(student.optimizer.param_groups, student.rates, strict=True):
                group["lr"] = rate * self._share_of_rate()
            loss = self._loss(student.model)
            student.optimizer.zero_grad()
            (loss + student.penalty()).backward()
            student.optimizer.step()
            student.after_step()
            self.step += 1
            self.seconds += time.process_time() - begin
            if self.step % CHECKPOINT == 0 or self.step == last:
                if trial is None:
                    self._keep(student)
                told = f"loss {loss:.5f}, {student.megabytes():.3f} MB, {self.seconds:.0f} s"
                print(f"step {self.step}: {told}", flush=True)

    def _keep(self, student: Student) -> None:
        state = {"model": student.model.state_dict(), "optimizer": student.optimizer.state_dict()}
        state |= {"generator": torch.get_rng_state(), "seconds": self.seconds, "step": self.step}
        beside = self.path.with_suffix(".new")
        torch.save(state | student.state(), beside)
        beside.replace(self.path)

    def _share_of_rate(self) -> float:
        """Constant for the first half, then a cosine to zero."""
        share = max(0.0, 2 * self.step / self.steps - 1)
        return float(0.5 + 0.5 * torch.tensor(share * torch.pi).cos())

    def _loss(self, model: nn.Module) -> Tensor:
        """Squared distance of the vectors, and of their similarities, to the float model's.

        A batch has as many sentences of either source, of about one length, so that next to nothing is padding.
        """
        chance = random.Random(self.seed * 1_000_003 + self.step)
        share, texts = chance.random(), []
        for source in self._texts:
            begin = int(share * (len(source) - BATCH))
            texts += chance.sample(source[begin : begin + BATCH], BATCH // 2)
        (batch,) = batches(texts, BATCH)
        with torch.no_grad():
            wanted = self._teacher(*batch)
        found = model(*batch)
        return (found - wanted).square().sum(1).mean() + (found @ found.T - wanted @ wanted.T).square().mean()
