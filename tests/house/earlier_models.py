"""Models and quantizers whose every number is made of whole ones, so that they are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffq_fast import LSQ, DiffQuantizer, UniformQuantizer

MIN_SIZE = 39 * 4 / 2**20  # MB: weights of 40 elements and more are quantised


def lattice(shape: tuple[int, ...] | torch.Size, seed: int, step: float = 2**-15) -> Tensor:
    """float32 multiples of ``step``, between -32760 and 32760 times it, that look random and are not."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    return ((index * index * 31 + index * 40503 + seed * 7919) % 65521 - 32760).float().mul(step).reshape(shape)


class Dense(nn.Module):
    """Linear layers of sizes that groups of 8 divide."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(16, 20)
        self.narrow = nn.Linear(20, 8)
        self.last = nn.Linear(8, 10, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.narrow(torch.relu(self.wide(inputs)))))

    def inputs(self, seed: int) -> Tensor:
        return lattice((6, 16), seed)


class Ragged(Dense):
    """Linear layers whose last group is shorter."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = nn.Linear(13, 21), nn.Linear(21, 7), nn.Linear(7, 9, bias=False)

    def inputs(self, seed: int) -> Tensor:
        return lattice((6, 13), seed)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 2)
        self.norm = nn.BatchNorm2d(5)
        self.pointwise = nn.Conv1d(5, 8, 1, bias=False)
        self.last = nn.Linear(8, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.pointwise(torch.relu(self.norm(self.conv(inputs))).mean(3)).mean(2))

    def inputs(self, seed: int) -> Tensor:
        return lattice((4, 2, 6, 6), seed)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2)
        self.last = nn.Linear(8, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.lstm(inputs)[0][-1])

    def inputs(self, seed: int) -> Tensor:
        return lattice((5, 4, 6), seed)


class Tied(nn.Module):
    """An embedding that is the head's weight too, a module under two names, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.inner = nn.Linear(8, 8)
        self.again = self.inner
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("count", torch.tensor(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.again(torch.relu(self.inner(self.embedding(inputs))))).mean(1) * self.gain

    def inputs(self, seed: int) -> Tensor:
        return (torch.arange(15).reshape(3, 5) * 7 + seed) % 20


MODELS = {model.__name__: model for model in (Dense, Ragged, Convolutional, Recurrent, Tied)}


def _diffq(**arguments: Any) -> Callable[[nn.Module], Any]:
    return lambda model: DiffQuantizer(model, **{"min_size": MIN_SIZE, "group_size": 8, **arguments})


def _uniform(**arguments: Any) -> Callable[[nn.Module], Any]:
    return lambda model: UniformQuantizer(model, **{"min_size": MIN_SIZE, **arguments})


QUANTIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "diffq": _diffq(noise="uniform"),
    "diffq gaussian": _diffq(),
    "diffq single": _diffq(group_size=1, noise="uniform"),
    "diffq whole": _diffq(group_size=0, noise="uniform"),
    "diffq ranges": _diffq(range_scope="group", noise="uniform"),
    "diffq by noise": _diffq(param="noise", noise="uniform", min_bits=3),
    "diffq extra bits": _diffq(extra_bits=1.25, noise="uniform"),
    "diffq torch": _diffq(rng="torch"),
    "diffq half": _diffq(float16=True, exclude=["last.*"], noise="uniform"),
    "diffq auto": _diffq(noisy_dtype="auto", noise="uniform"),
    "uniform 8": _uniform(),
    "uniform 3": _uniform(bits=3, qat=True),
    "uniform 9.6": _uniform(bits=9.6, qat=True),
    "lsq 4": lambda model: LSQ(model, bits=4, min_size=MIN_SIZE),
}


class Case(NamedTuple):
    model: str
    quantizer: str

    def __str__(self) -> str:
        return f"{self.model}, {self.quantizer}"

    def make(self) -> tuple[Any, Any]:
        """The model and its quantizer, with every parameter, logit, scale and statistic set."""
        model = MODELS[self.model]()
        quantizer = QUANTIZERS[self.quantizer](model)
        with torch.no_grad():
            for seed, (name, value) in enumerate([*model.named_parameters(), *model.named_buffers()]):
                if value.is_floating_point():
                    value.copy_(_value(name, value.shape, seed))
        return model, quantizer


def _value(name: str, shape: torch.Size, seed: int) -> Tensor:
    if name.endswith("_diffq"):
        # From -3 to 1, and so that no number of bits lies within 0.001 of where it rounds the other way.
        return (lattice(shape, seed, 2**-11) * 8).floor() / 64 + (3 / 512 - 1)
    if name.endswith("_lsq"):
        return torch.full(shape, 0.09375)
    if name.endswith("running_var"):
        return lattice(shape, seed).abs() + 0.5
    return lattice(shape, seed) / 2
