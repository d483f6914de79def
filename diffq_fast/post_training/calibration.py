"""Second moments of a model's activations and of its gradients: which errors of which weight show in the outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..files.safetensors_reader import FileError
from ..files.safetensors_writer import TensorSource, write_safetensors
from ..files.tensor_bytes import dtype_name, tensor_bytes
from .gathering import COLUMNS, ROWS, Gathering
from .sources import Source, open_source
from .steps import Moments

Calibration = Mapping[str, Tensor]
Loss = Callable[[Any], Tensor]


def calibrate(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Second moments for :func:`diffq_fast.pack_checkpoint`, gathered over the model's layers.

    Of these: linear layers and embeddings; convolutions, transposed ones too, of one to three dimensions; LSTM, GRU,
    RNN and their cells; multi-head attention; the ``Conv1D`` of Hugging Face's GPT-2.

    For each weight NAME [rows, columns]: ``NAME.columns`` [columns, columns] and ``NAME.rows`` [rows], so that an error
    E of the weight costs the sum over rows of ``rows[r] · E[r] @ columns @ E[r]``. For a linear layer columns are the
    second moments of its inputs, and rows those of the gradients at its outputs; for an embedding columns are the
    second moments of the gradients, and rows how often each token occurs, half of it spread over all tokens. A
    convolution is a linear layer over windows of its input, [channels · taps] each. Where rows are inputs, as those of
    a transposed convolution, rows are [rows, rows] and columns [columns]. A matrix of more than 8,192 has its diagonal
    only.

    The gradients are those of ``loss``. Without one they are those of the outputs' products with random vectors, whose
    second moments say how far the outputs themselves move: no labels are needed.

    Args:
        model: as it will be packed; its parameters and its mode are left as they are.
        batches: what the model is called with, each a tensor, a tuple of arguments or a dict of keyword arguments. A
            few hundred examples do; they must be like those that the model will see.
        loss: of the model's output, a sum (not a mean) over the batch.
        seed: of the random vectors.

    Raises:
        ValueError: no batch, or none of the layers ran. TypeError: an output without a floating tensor.
    """
    gathering = Gathering()
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    calls = 0
    with ExitStack() as stack, torch.enable_grad():
        gathering.watch(model, stack)
        stack.callback(model.train, training)
        model.eval()
        for batch in batches:
            output = _call(model, batch)
            total = loss(output) if loss is not None else _projection(output, generator)
            gathering.backward(total)
            calls += 1
    if not calls:
        raise ValueError("calibrate: expected at least one batch, got none")
    return {name + part: each for name, found in gathering.moments().items() for part, each in found.items()}


def save_calibration(path: str | os.PathLike[str], calibration: Calibration) -> None:
    """Write what :func:`calibrate` gave to a safetensors file, which ``diffq-fast pack --calibration`` reads."""
    sources = []
    for name, tensor in calibration.items():
        dtype = dtype_name(tensor, "save_calibration", name)
        sources.append(TensorSource(name, dtype, tuple(tensor.shape), partial(tensor_bytes, tensor)))
    write_safetensors(path, sources, {"format": "pt"})


class CalibrationFile:
    """The moments in a safetensors file, or in a mapping; each is read when its weight is at hand."""

    def __init__(self, given: Calibration | str | os.PathLike[str] | None, stack: ExitStack) -> None:
        self._source: Source | None = None
        self._given: Calibration = {}
        if isinstance(given, (str, os.PathLike)):
            self._source = stack.enter_context(open_source(given))
            names = set(self._source.entries)
        else:
            self._given = given or {}
            names = set(self._given)
        self.weights = {name.removesuffix(part) for name in names for part in (COLUMNS, ROWS) if name.endswith(part)}
        self._names = names
        if given is not None and not self.weights:
            raise FileError("pack: calibration: expected tensors NAME.columns or NAME.rows, found none")

    def moments(self, name: str) -> Moments | None:
        """Those of the weight of this name, or None."""
        if name not in self.weights:
            return None
        return Moments(self._tensor(name + COLUMNS), self._tensor(name + ROWS))

    def _tensor(self, name: str) -> Tensor | None:
        if name not in self._names:
            return None
        return self._source.tensor(name) if self._source is not None else self._given[name]


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _projection(output: Any, generator: torch.Generator) -> Tensor:
    """The sum of the outputs' products with random vectors of independent normal numbers."""
    tensors = [each for each in _tensors(output) if each.is_floating_point() and each.requires_grad]
    if not tensors:
        raise TypeError("calibrate: expected an output with floating tensors that depend on the weights; give a loss")
    parts = []
    for each in tensors:
        noise = torch.randn(each.shape, generator=generator, dtype=torch.float32, device="cpu").to(each.device)
        parts.append((each.to(torch.float32) * noise).sum())
    return torch.stack(parts).sum()


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
