"""Levels of a weight at given steps: to the nearest, with the price of their bits, with feedback of the error.

The error of a row w of a weight is measured as e M eᵀ, e what rounding changes and M the second moments of what the
row's elements are multiplied with. Where M is known, rounding goes from column to column, and what it did to one column
is made good in those behind it as far as M allows (the method of optimal brain surgeon, as in GPTQ). With a price, of
the two nearest levels the one with the smaller sum of error and price times bits is taken (as in CERWU).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_COLUMNS = 64  # whose feedback to the columns behind them is one product
DAMPING = 0.01  # of the mean of M's diagonal, added to it
MOST_DAMPING = 10.0
TRIANGLE = 256  # rows of a triangular matrix whose inverse is found at once
MOST_LEVEL = (1 << 15) - 1


class Feedback(NamedTuple):
    """What rounding with feedback needs to know of M.

    upper: float32 [columns, columns], upper Cholesky factor U of M's inverse, columns in ``order``.
    order: int64 [columns], those with large moments first. errors: float32 [columns], in the order of the weight: what
    a change of one column by 1 costs when all behind it make up for it, 1 / U_jj².
    """

    upper: Tensor
    order: Tensor
    errors: Tensor


class Price(NamedTuple):
    """What a bit costs, and how many bits each level from ``lowest`` on takes; levels beyond take those of the ends."""

    per_bit: float
    lowest: int
    bits: Tensor


def feedback_of(moments: Tensor, damping: float = DAMPING) -> Feedback:
    """Factor second moments [columns, columns], damped until that is safe in double precision.

    Raises:
        ValueError: moments that are not finite, or not positive semidefinite even when damped.
    """
    matrix = moments.detach().to(torch.float64)
    matrix = (matrix + matrix.T) / 2
    mean = float(matrix.diagonal().mean())
    if not math.isfinite(mean) or not bool(torch.isfinite(matrix).all()):
        raise ValueError("feedback_of: expected finite second moments, found NaN or infinity")
    order = matrix.diagonal().argsort(descending=True)
    matrix = matrix[order][:, order]
    count = len(matrix)
    added = damping * mean if mean > 0 else 1.0
    while True:
        damped = matrix.flip(0, 1)
        damped.diagonal().add_(added)
        lower, failed = torch.linalg.cholesky_ex(damped)  # M = R Rᵀ with R upper: its inverse is Uᵀ U, U = 1 / R
        if not int(failed):
            upper = _inverse_of_upper(lower.flip(0, 1))
            if bool(torch.isfinite(upper).all()):
                break
        added *= 10
        if added > MOST_DAMPING * max(mean, 1e-300):
            raise ValueError("feedback_of: the second moments are not positive semidefinite")
    errors = torch.empty(count, dtype=torch.float32, device=matrix.device)
    errors[order] = (1 / upper.diagonal() ** 2).to(torch.float32)
    return Feedback(upper.to(torch.float32), order, errors)


def _inverse_of_upper(matrix: Tensor) -> Tensor:
    """Of an upper triangular matrix: by halves, so that most of it is products."""
    count = len(matrix)
    if count <= TRIANGLE:
        unit = torch.eye(count, dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(matrix, unit, upper=True)
    middle = count // 2
    result = torch.zeros_like(matrix)
    result[:middle, :middle] = _inverse_of_upper(matrix[:middle, :middle])
    result[middle:, middle:] = _inverse_of_upper(matrix[middle:, middle:])
    result[:middle, middle:] = -(result[:middle, :middle] @ matrix[:middle, middle:]) @ result[middle:, middle:]
    return result


def round_weight(
    weight: Tensor,
    steps: Tensor,
    importance: Tensor,
    *,
    feedback: Feedback | None = None,
    price: Price | None = None,
) -> Tensor:
    """int32 levels [rows, columns].

    Args:
        weight: float32 [rows, columns].
        steps: float32 [rows], or [1, columns].
        importance: float32 [rows], what an error of 1 in each row costs; read where there is a price.
        feedback: of the second moments; without it each element is rounded for itself.
        price: of bits; without it levels are the nearest.
    """
    steps = steps[:, None] if steps.ndim == 1 else steps
    costs = importance[:, None] * steps * steps
    if feedback is None:
        return _chosen(weight / steps, costs, price).to(torch.int32)
    if steps.shape[1] > 1:
        steps, costs = steps[:, feedback.order], costs[:, feedback.order]
    columns = weight.shape[1]
    rest = weight[:, feedback.order].contiguous()
    levels = torch.empty(rest.shape, dtype=torch.int32, device=weight.device)
    for start in range(0, columns, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, columns)
        upper = feedback.upper[start:end, start:end]
        block, errors = rest[:, start:end].T.contiguous(), []
        for column in range(end - start):
            place = start + column if steps.shape[1] > 1 else 0
            scale, step = upper[column, column], steps[:, place]
            level = _chosen(block[column] / step, costs[:, place] / (scale * scale), price)
            error = (block[column] - level * step) / scale
            block[column + 1 :] -= upper[column, column + 1 :, None] * error
            levels[:, start + column] = level.to(torch.int32)
            errors.append(error)
        rest[:, end:] -= torch.stack(errors, 1) @ feedback.upper[start:end, end:]
    result = torch.empty_like(levels)
    result[:, feedback.order] = levels
    return result


def _chosen(values: Tensor, costs: Tensor, price: Price | None) -> Tensor:
    """The nearest whole number, or the next one towards zero if its bits save more than its error costs."""
    nearest = values.round().clamp(-MOST_LEVEL, MOST_LEVEL)
    if price is None:
        return nearest
    smaller = nearest - nearest.sign()
    last = len(price.bits) - 1
    saved = price.bits[(nearest - price.lowest).clamp(0, last).long()]
    saved = saved - price.bits[(smaller - price.lowest).clamp(0, last).long()]
    more = (values - smaller) ** 2 - (values - nearest) ** 2
    return torch.where(costs * more < price.per_bit * saved, smaller, nearest)


def bits_of_levels(levels: Tensor) -> tuple[int, Tensor]:
    """(lowest level, bits of each level from it on), by how often they occur; half a time more than that for each."""
    lowest = int(levels.min())
    counts = torch.bincount((levels.reshape(-1) - lowest).long()).to(torch.float32) + 0.5
    return lowest, -torch.log2(counts / counts.sum())
