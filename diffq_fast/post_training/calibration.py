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
from .sources import Source, open_source
from .steps import Moments

COLUMNS, ROWS = ".columns", ".rows"
UNSEEN = 0.5  # of an embedding's importance, spread evenly: tokens that calibration did not see must live too
MOST_COLUMNS = 8192  # a wider weight gets the diagonal only: 4 bytes · columns² would be much

Calibration = Mapping[str, Tensor]
Loss = Callable[[Any], Tensor]


def calibrate(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Second moments for :func:`diffq_fast.pack_checkpoint`, gathered over the model's linear and embedding layers.

    For each weight NAME [rows, columns]: ``NAME.columns`` [columns, columns] and ``NAME.rows`` [rows], so that an error
    E of the weight costs the sum over rows of ``rows[r] · E[r] @ columns @ E[r]``. For a linear layer columns are the
    second moments of its inputs, and rows those of the gradients at its outputs; for an embedding columns are the
    second moments of the gradients, and rows how often each token occurs, half of it spread over all tokens.

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
    gathering = _Gathering()
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    calls = 0
    with ExitStack() as stack, torch.enable_grad():
        for name, layer in _layers(model).items():
            stack.callback(layer.register_forward_hook(gathering.hook(name)).remove)
        stack.callback(model.train, training)
        model.eval()
        for batch in batches:
            output = _call(model, batch)
            total = loss(output) if loss is not None else _projection(output, generator)
            gathering.backward(total)
            calls += 1
    if not calls:
        raise ValueError("calibrate: expected at least one batch, got none")
    return gathering.moments()


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


class _Gathering:
    """Sums over all batches, by the weight's name."""

    def __init__(self) -> None:
        self._inputs: dict[str, Tensor] = {}  # sums of x xᵀ, or counts of tokens
        self._gradients: dict[str, Tensor] = {}  # sums of g², or of g gᵀ for embeddings
        self._count: dict[str, int] = {}
        self._embeddings: set[str] = set()
        self._outputs: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def remember(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:  # frozen parameters, and nothing learned before them
                output = output.detach().requires_grad_()
            self._outputs.append((name, layer, arguments[0].detach(), output))
            return output

        return remember

    def backward(self, total: Tensor) -> None:
        """Add the moments of one batch; no parameter's gradient is made."""
        if not self._outputs:
            raise ValueError("calibrate: no linear or embedding layer ran, so there is nothing to gather")
        outputs = [output for *_, output in self._outputs]
        gradients = torch.autograd.grad(total, outputs, allow_unused=True)
        for (name, layer, inputs, _), gradient in zip(self._outputs, gradients, strict=True):
            if gradient is not None:
                self._add(name, layer, inputs, gradient.reshape(-1, gradient.shape[-1]).to(torch.float32))
        self._outputs.clear()

    def _add(self, name: str, layer: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
        if isinstance(layer, nn.Embedding):
            self._embeddings.add(name)
            tokens = inputs.reshape(-1)
            seen = torch.bincount(tokens, minlength=layer.num_embeddings).to(torch.float32)
            moments = _outer(gradient)
            count = gradient.shape[0]
            self._sum(name, seen * (count / max(len(tokens), 1)), moments, count)
            return
        used = gradient.square().sum(1) > 0  # padding moves no output, so its inputs do not count
        values = inputs.reshape(-1, inputs.shape[-1])[used].to(torch.float32)
        self._sum(name, _outer(values), gradient.square().sum(0), int(used.sum()))

    def _sum(self, name: str, inputs: Tensor, gradients: Tensor, count: int) -> None:
        if name in self._count:
            inputs, gradients = inputs + self._inputs[name], gradients + self._gradients[name]
        self._inputs[name], self._gradients[name] = inputs, gradients
        self._count[name] = self._count.get(name, 0) + count

    def moments(self) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for name, count in self._count.items():
            inputs, gradients = self._inputs[name].cpu(), self._gradients[name].cpu()
            if name in self._embeddings:
                rows = (1 - UNSEEN) * inputs + UNSEEN * inputs.mean()
                made[name + COLUMNS], made[name + ROWS] = gradients / max(count, 1), rows
            else:
                made[name + COLUMNS], made[name + ROWS] = inputs / max(count, 1), gradients
        return made


def _outer(values: Tensor) -> Tensor:
    """Sums of x xᵀ over the rows x, or only of x² where that would be too large."""
    return values.T @ values if values.shape[1] <= MOST_COLUMNS else values.square().sum(0)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers that are understood, by the name of their weight; of a weight that two layers share, the first."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)) and id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            found[f"{name}.weight" if name else "weight"] = layer
    return found


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
