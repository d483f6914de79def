"""What the inputs and the gradients of one layer say of its weight: second moments, summed over the positions.

A weight [rows, columns, …] is a matrix here, its dimensions behind the first one being one. Of a layer whose output at
a position is ``weight @ x``, an error E costs Σ_r (Σ g_r²) · E_r · mean(x xᵀ) · E_rᵀ, g the gradient at the output.
Where rows are those of the input, as in transposed convolutions, it costs Σ_c (Σ g_c²) · E_cᵀ · mean(x xᵀ) · E_c, over
the columns: errors of one output make good for each other. An embedding has one row at a time: there it is the moments
of the gradient that are worth a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_COLUMNS = 8192  # a wider weight gets the diagonal only: 4 bytes · columns² would be much
MOST_WINDOWS = 4096  # of one call of a convolution, at even distances: they overlap, and each has all columns
MOST_WINDOW_ELEMENTS = 1 << 25  # of those together, at once in memory: 128 MB
TINY = torch.finfo(torch.float32).tiny


class Sums(NamedTuple):
    """columns: [columns, columns] or [columns]. rows: [rows], or [rows, rows] where columns are a vector. A matrix is a
    sum over so many positions, and so are columns where both are vectors; the others are sums over all positions."""

    columns: Tensor
    rows: Tensor
    positions: int


Moments = Callable[[Tensor], Sums]  # of the gradient at an output


def of_product(inputs: Tensor) -> Moments:
    """Of ``inputs @ weight.T``: inputs [..., columns], the gradient [..., rows]."""

    def moments(gradient: Tensor) -> Sums:
        gradient = _flat(gradient)
        used = _used(gradient)
        return Sums(_outer(_flat(inputs)[used]), gradient.square().sum(0), int(used.sum()))

    return moments


def of_transposed_product(inputs: Tensor) -> Moments:
    """Of ``inputs @ weight``: inputs [..., rows], the gradient [..., columns]."""

    def moments(gradient: Tensor) -> Sums:
        gradient = _flat(gradient)
        used = _used(gradient)
        return Sums(gradient.square().sum(0), _outer(_flat(inputs)[used]), int(used.sum()))

    return moments


def of_embedding(tokens: Tensor, count: int) -> Moments:
    """Of ``weight[tokens]``, of so many rows; the gradient [..., columns]."""

    def moments(gradient: Tensor) -> Sums:
        gradient = _flat(gradient)
        seen = torch.bincount(tokens.reshape(-1), minlength=count).to(torch.float32)
        return Sums(_outer(gradient), seen * (len(gradient) / max(tokens.numel(), 1)), len(gradient))

    return moments


def of_convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Moments:
    """Of a convolution's call: a column is one element of the window that an output sees."""

    def moments(gradient: Tensor) -> Sums:
        values, outputs = _batched(layer, inputs), _rows(_batched(layer, gradient))
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        windows = _windows(layer, F.pad(values, layer._reversed_padding_repeated_twice, mode))
        depth = len(layer.kernel_size)
        places = _used(outputs).nonzero()[:, 0]
        most = min(MOST_WINDOWS, max(1, MOST_WINDOW_ELEMENTS // windows.shape[depth + 1 :].numel()))
        chosen = places[:: max(1, -(-len(places) // most))]
        found = windows[torch.unravel_index(chosen, windows.shape[: depth + 1])]
        columns, traces = _of_groups(found.flatten(1).unflatten(1, (layer.groups, -1)))
        rows = outputs.square().sum(0).view(layer.groups, -1) * traces[:, None]
        return Sums(columns.mean(0), rows.view(-1), len(chosen))

    return moments


def of_transposed_convolution(
    layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, inputs: Tensor
) -> Moments:
    """Of a transposed convolution's call: a column is one element of the window that an input writes to.

    Groups of inputs have outputs of their own, so that their errors do not make good for each other's.
    """

    def moments(gradient: Tensor) -> Sums:
        values, outputs = _batched(layer, inputs), _batched(layer, gradient)
        padding: list[int] = []
        for place in reversed(range(len(layer.kernel_size))):
            steps, taps = values.shape[2 + place] - 1, layer.kernel_size[place] - 1
            reach = steps * layer.stride[place] + taps * layer.dilation[place] + 1  # of all windows
            left = int(layer.padding[place])
            padding += [left, reach - left - outputs.shape[2 + place]]  # below 0 where no window writes
        depth = len(layer.kernel_size)
        squares = _windows(layer, F.pad(outputs, padding).square())  # [batch, *windows, channels, *kernel]
        used = (squares.sum(tuple(range(depth + 1, 2 * depth + 2))) > 0).view(-1)
        columns = squares.sum(tuple(range(depth + 1))).view(layer.groups, -1)
        sums = columns.sum(1)
        shares = sums / sums.mean().clamp(min=TINY)
        columns = (columns / shares.clamp(min=TINY)[:, None]).mean(0)
        places = _rows(values)[used].chunk(layer.groups, 1)
        each = [_outer(group) * share for group, share in zip(places, shares, strict=True)]
        rows = torch.block_diag(*each) if each[0].ndim == 2 else torch.cat(each)
        return Sums(columns, rows, int(used.sum()))

    return moments


Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def _batched(layer: Convolution, values: Tensor) -> Tensor:
    """float32 [batch, channels, *places]: a call may go without the first dimension."""
    values = values.to(torch.float32)
    return values[None] if values.ndim == len(layer.kernel_size) + 1 else values


def _rows(values: Tensor) -> Tensor:
    """[batch, channels, *places] as [positions, channels]."""
    return values.movedim(1, -1).flatten(0, -2)


def _windows(layer: Convolution, values: Tensor) -> Tensor:
    """[batch, channels, *places] as a view [batch, *windows, channels, *kernel]."""
    count = len(layer.kernel_size)
    for place, (taps, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        values = values.unfold(place, (taps - 1) * dilation + 1, stride)[..., ::dilation]
    return values.movedim(1, count + 1)


def _of_groups(windows: Tensor) -> tuple[Tensor, Tensor]:
    """(moments of each group, all with the same trace, the share of the mean that its own has).

    windows: [positions, groups, columns]. Groups of channels have windows of their own, but one matrix is kept for all.
    """
    each = torch.stack([_outer(group) for group in windows.unbind(1)])
    traces = each.diagonal(dim1=1, dim2=2).sum(1) if each.ndim == 3 else each.sum(1)
    shares = traces / traces.mean().clamp(min=TINY)
    return each / shares.clamp(min=TINY).view(-1, *[1] * (each.ndim - 1)), shares


def _flat(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1]).to(torch.float32)


def _used(gradient: Tensor) -> Tensor:
    """Padding moves no output, so what stands there does not count."""
    return gradient.square().sum(1) > 0


def _outer(values: Tensor) -> Tensor:
    """Sums of x xᵀ over the rows x, or only of x² where that would be too large."""
    return values.T @ values if values.shape[1] <= MOST_COLUMNS else values.square().sum(0)
