"""Watches the layers of a model while it runs, and sums up second moments of what their weights are multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import unrolled
from .layer_moments import (
    Moments,
    Sums,
    of_convolution,
    of_embedding,
    of_product,
    of_transposed_convolution,
    of_transposed_product,
)

COLUMNS, ROWS = ".columns", ".rows"
UNSEEN = 0.5  # of an embedding's importance, spread evenly: tokens that calibration did not see must live too
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WRITTEN_OUT: dict[Any, Callable[[Any, unrolled.Product], Callable[..., Any]]] = {
    **dict.fromkeys((nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward), unrolled.recurrent),
    **dict.fromkeys((nn.LSTMCell.forward, nn.GRUCell.forward, nn.RNNCell.forward), unrolled.cell),
    nn.MultiheadAttention.forward: unrolled.attention,
}  # by the method itself: a class that overrides it computes something else


@dataclass(frozen=True)
class Use:
    """One product with a weight. moments: how they follow from the gradient at its output."""

    name: str
    output: Tensor
    moments: Moments


class Gathering:
    """Sums over all batches, by the weight's name."""

    def __init__(self) -> None:
        self._uses: list[Use] = []  # of the batch that runs
        self._sums: dict[str, Sums] = {}
        self._embeddings: set[str] = set()

    def watch(self, model: nn.Module, stack: ExitStack) -> None:
        """See every layer that is understood, until the stack is left; of a weight that two layers share, the first."""
        seen: dict[int, Tensor] = {}
        for name, layer in model.named_modules():
            prefix = f"{name}." if name else ""
            written_out = WRITTEN_OUT.get(type(layer).forward)
            if written_out is not None and "forward" not in vars(layer):
                vars(layer)["forward"] = written_out(layer, self._product(prefix, layer))
                stack.callback(vars(layer).pop, "forward")
            moments_of = _moments_of(layer)
            if moments_of is None or id(layer.weight) in seen:
                continue
            seen[id(layer.weight)] = layer.weight
            if isinstance(layer, nn.Embedding):
                self._embeddings.add(prefix + "weight")
            hook = self._hook(prefix + "weight", moments_of)
            stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)

    def _hook(self, name: str, moments_of: Callable[[Tensor], Moments]) -> Callable[..., Tensor]:
        def remember(layer: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any], output: Tensor) -> Tensor:
            inputs = given[0] if given else named["x" if "x" in named else "input"]
            return self._used(name, output, moments_of(inputs.detach()))

        return remember

    def _product(self, prefix: str, layer: nn.Module) -> unrolled.Product:
        def product(name: str, inputs: Tensor, bias: Tensor | None, part: int = 0, parts: int = 1) -> Tensor:
            weight = getattr(layer, name)
            output = F.linear(inputs, weight.chunk(parts)[part], bias)
            moments = of_product(inputs.detach())
            return self._used(prefix + name, output, moments if parts == 1 else _of_part(moments, part, parts))

        return product

    def _used(self, name: str, output: Tensor, moments: Moments) -> Tensor:
        if not output.requires_grad:  # frozen parameters, and nothing learned before them
            output = output.detach().requires_grad_()
        self._uses.append(Use(name, output, moments))
        return output.clone()  # what comes next may write onto it

    def backward(self, total: Tensor) -> None:
        """Add the moments of one batch; no parameter's gradient is made."""
        if not self._uses:
            raise ValueError("calibrate: no layer ran whose weight is understood, so there is nothing to gather")
        outputs = [use.output for use in self._uses]
        gradients = torch.autograd.grad(total, outputs, allow_unused=True)
        for use, gradient in zip(self._uses, gradients, strict=True):
            if gradient is not None:
                self._add(use.name, use.moments(gradient))
        self._uses.clear()

    def _add(self, name: str, found: Sums) -> None:
        before = self._sums.get(name)
        if before is not None:
            positions = before.positions + found.positions
            found = Sums(before.columns + found.columns, before.rows + found.rows, positions)
        self._sums[name] = found

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """``.columns`` and ``.rows`` of each weight, on the CPU."""
        made = {}
        for name, (columns, rows, positions) in self._sums.items():
            if name in self._embeddings:
                rows = (1 - UNSEEN) * rows + UNSEEN * rows.mean()
            if rows.ndim == 2:
                rows = rows / max(positions, 1)
            else:
                columns = columns / max(positions, 1)
            made[name] = {COLUMNS: columns.cpu(), ROWS: rows.cpu()}
        return made


def _moments_of(layer: Any) -> Callable[[Tensor], Moments] | None:
    """How the moments of this layer's ``weight`` follow from its input; None of a layer that is not understood."""
    if isinstance(layer, nn.Linear):
        return of_product
    if isinstance(layer, nn.Embedding):
        return lambda tokens: of_embedding(tokens, layer.num_embeddings)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return lambda inputs: of_convolution(layer, inputs)
    if isinstance(layer, TRANSPOSED):
        return lambda inputs: of_transposed_convolution(layer, inputs)
    if type(layer).__name__ == "Conv1D" and type(layer).__module__ == "transformers.pytorch_utils":
        return of_transposed_product
    return None


def _of_part(moments: Moments, part: int, parts: int) -> Moments:
    """Moments of a product with one of so many equal parts of a weight's rows, as those of the weight."""

    def of_whole(gradient: Tensor) -> Sums:
        columns, rows, positions = moments(gradient)
        padding = (part * len(rows), (parts - 1 - part) * len(rows))
        return Sums(columns, F.pad(rows, padding), positions)

    return of_whole
