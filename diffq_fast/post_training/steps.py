"""The step of each row, by a closed form, up to one factor for the whole checkpoint.

At a step Δ a row of n elements has the error a · n · m · Δ² / 12, where a is the row's importance and m the mean cost
of an element's error, and takes n · (h − log2 Δ) bits. The sum of all errors at a given sum of bits is the smallest
where another bit gains the same everywhere, that is where a · m · Δ² is one number for all rows: ``scale``.
Without activations a row's importance is 1 over its mean square: steps are then in proportion to its size, and what is
equal is the relative error, but for long embedding tables, whose elements are worth less.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import functional
from .rounding import MOST_LEVEL, Feedback, Price, bits_of_levels, feedback_of, round_weight

BIT_PRICE = 0.1  # the price of a bit, in units of the scale: a step's slope of error over bits is ln(2) / 6 = 0.116
FEWEST_COLUMNS = 64  # of a group: shorter rows share a step
EMBEDDING = re.compile(r"(^|[._])(emb|embd|embeds?|embeddings?|wte)([._]|$)")
LONG_TABLE = 4  # times as many rows as columns, as the longest linear layers of a transformer have
REACH = MOST_LEVEL // 2  # the level of a row's largest element at most; feedback may lead as far again
RELATIVE_FLOOR = 1e-3  # of a weight's mean importance: a row that calibration never saw is not worthless


@dataclass(frozen=True)
class Moments:
    """What calibration knows of one weight [rows, columns]; either may be missing, and one of them may be a matrix.

    columns: [columns, columns] (or only its diagonal): second moments of what a row is multiplied with.
    rows: [rows], what an error in this row costs, such as the second moments of the gradient there. Or [rows, rows],
    where it is columns that are multiplied with something.
    """

    columns: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True)
class Across:
    """Of a weight whose columns are multiplied with something: what their errors cost.

    feedback: from row to row of the weight, not of what :func:`as_matrix` made of it. columns: float32 [columns].
    """

    feedback: Feedback
    columns: Tensor


@dataclass(frozen=True)
class Sensitivity:
    """How much the errors of one weight cost.

    importance: float32 [rows]. column_cost: the mean over the columns of what an element's error costs, less what
    feedback makes good. feedback: None for rounding each element for itself. smallest: float32 [rows], the steps below
    which a row's largest level would be no level of the file. across: where feedback goes from row to row instead;
    what importance is multiplied by is its unit.
    """

    importance: Tensor
    column_cost: float = 1.0
    feedback: Feedback | None = None
    smallest: Tensor | None = None
    across: Across | None = None
    unit: float = 1.0

    @property
    def nbytes(self) -> int:
        """Of the factor, which is nearly all."""
        feedback = self.feedback if self.across is None else self.across.feedback
        return self.importance.nbytes + (0 if feedback is None else feedback.upper.nbytes)

    def scaled(self, factor: float) -> Sensitivity:
        """The same with everything worth so many times as much."""
        return replace(self, importance=self.importance * factor, unit=self.unit * factor)

    def steps(self, scale: float) -> tuple[Tensor, Tensor]:
        """(int16 codes, float32 steps), each [rows], at which importance · column_cost · step² is nearest to scale, or
        the smallest.
        """
        steps = (scale / (self.importance * self.column_cost)).sqrt()
        codes = functional.codes_from_steps(steps if self.smallest is None else steps.maximum(self.smallest))
        return codes, functional.steps_from_codes(codes)

    def step_values(self, codes: Tensor) -> Tensor:
        """float32 steps of these codes."""
        return functional.steps_from_codes(codes)


def as_matrix(weight: Tensor) -> Tensor:
    """float32 [rows, columns]: a row is a group of the file, one output of the layer where that is long enough."""
    columns = weight[0].numel()
    together = 1
    while columns * together < FEWEST_COLUMNS and together < len(weight) and len(weight) % (2 * together) == 0:
        together *= 2
    return weight.detach().to(torch.float32).reshape(-1, columns * together)


def moments_in_rows(moments: Moments | None, weight: Tensor, matrix: Tensor, name: str) -> Moments | None:
    """Moments of a weight, as those of what :func:`as_matrix` made of it, whose rows may hold several of the weight's.

    Raises:
        ValueError: moments that do not fit the weight or are not finite.
    """
    together = len(weight) // max(len(matrix), 1)
    if moments is None or together <= 1 or (moments.rows is not None and moments.rows.ndim == 2):
        return moments
    columns, rows, width = moments.columns, moments.rows, weight[0].numel()
    if columns is not None:
        _check(name, "columns", columns, [width, width], [width])
        columns = columns.repeat(together) if columns.ndim == 1 else torch.block_diag(*[columns] * together)
    if rows is not None:
        _check(name, "rows", rows, [len(weight)])
        rows = rows.to(torch.float32).view(-1, together).mean(1)
    return Moments(columns, rows)


def sensitivity_of(matrix: Tensor, moments: Moments | None, name: str) -> Sensitivity:
    """How much errors of this weight [rows, columns] cost, by what calibration knows of it.

    Raises:
        ValueError: moments that do not fit the weight or are not finite; elements so large that their squares are not.
    """
    squares = matrix.square().mean(1)
    if not bool(squares.mean().isfinite()):
        largest = float(matrix.abs().max())
        raise ValueError(
            f"pack: {name}: expected elements whose squares float32 holds, found {largest:.3g}; scale the weight, or "
            "keep it as it is (keep)"
        )
    return replace(_costs(matrix, squares, moments, name), smallest=matrix.abs().amax(1) / REACH)


def _costs(matrix: Tensor, squares: Tensor, moments: Moments | None, name: str) -> Sensitivity:
    """``squares``: the mean of each row's."""
    rows, columns = matrix.shape
    floor = RELATIVE_FLOOR * squares.mean()
    relative = table_worth(name, rows, columns) / (squares.clamp(min=float(floor)) + torch.finfo(torch.float32).tiny)
    if moments is None or (moments.columns is None and moments.rows is None):
        return Sensitivity(relative)
    if moments.rows is not None and moments.rows.ndim == 2:
        return _costs_across(matrix, moments, name)
    feedback, column_cost = None, 1.0
    if moments.columns is not None:
        _check(name, "columns", moments.columns, [columns, columns], [columns])
        if moments.columns.ndim == 2:
            feedback = feedback_of(moments.columns)
            column_cost = float(feedback.errors.mean())
        else:
            column_cost = float(moments.columns.mean())
    if moments.rows is None:
        return Sensitivity(relative / max(column_cost, torch.finfo(torch.float32).tiny), column_cost, feedback)
    _check(name, "rows", moments.rows, [rows])
    importance = moments.rows.to(torch.float32)
    importance = importance.clamp(min=RELATIVE_FLOOR * float(importance.mean()))
    if moments.columns is None:  # without them the unit is not known: only what the rows are worth against each other
        importance = importance / float((importance * squares).mean() + torch.finfo(torch.float32).tiny)
    return Sensitivity(importance, column_cost, feedback)


def _costs_across(matrix: Tensor, moments: Moments, name: str) -> Sensitivity:
    """Where the moments of the rows are a matrix: several of them may be one row of ``matrix``."""
    assert moments.rows is not None
    count = len(moments.rows)
    if count == 0 or count % max(len(matrix), 1) or matrix.numel() % count:
        raise ValueError(
            f"pack: calibration of {name}: rows of shape {list(moments.rows.shape)} do not fit the weight's elements"
        )
    width = matrix.numel() // count
    _check(name, "rows", moments.rows, [count, count])
    ones = moments.rows.new_ones(width, dtype=torch.float32)
    columns = ones if moments.columns is None else moments.columns.to(torch.float32)
    _check(name, "columns beside a matrix of rows", columns, [width])
    feedback = feedback_of(moments.rows)
    importance = feedback.errors.view(len(matrix), -1).mean(1)
    importance = importance.clamp(min=RELATIVE_FLOOR * float(importance.mean()))
    columns = columns.clamp(min=RELATIVE_FLOOR * float(columns.mean()))
    return Sensitivity(importance, float(columns.mean()), across=Across(feedback, columns))


def table_worth(name: str, rows: int, columns: int) -> float:
    """What an element of this weight is worth beside one of a linear layer, if nothing is known but its name and shape.

    An input uses every row of a linear layer, but one row of an embedding: as a whole a long table is worth no more
    than a layer, and its elements less the more rows it has. It may be the output layer too, where they are worth as
    much as others; what is taken is the geometric mean of the two.
    """
    if not EMBEDDING.search(name.lower()):
        return 1.0
    return float(min(1.0, LONG_TABLE * columns / max(rows, 1)) ** 0.5)


def _check(name: str, what: str, given: Tensor, *shapes: list[int]) -> None:
    if list(given.shape) not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"pack: calibration of {name}: expected {what} of shape {expected}, got {list(given.shape)}")
    if not bool(torch.isfinite(given).all()) or bool(
        given.diagonal().min() < 0 if given.ndim == 2 else given.min() < 0
    ):
        raise ValueError(f"pack: calibration of {name}: expected {what} finite and not negative")


def quantise(matrix: Tensor, sensitivity: Sensitivity, scale: float, passes: int = 2) -> tuple[Tensor, Tensor]:
    """(int32 levels [rows, columns], int16 step codes [rows]) at this scale.

    The price of a level depends on how often it occurs, so levels are chosen more than once.
    """
    codes, steps = sensitivity.steps(scale)
    levels = round_weight(matrix, steps, sensitivity.importance)
    for _ in range(passes):
        lowest, bits = bits_of_levels(levels)
        price = Price(BIT_PRICE * scale, lowest, bits)
        if sensitivity.across is not None:
            levels = _round_across(matrix, steps, sensitivity, sensitivity.across, price)
        else:
            levels = round_weight(matrix, steps, sensitivity.importance, feedback=sensitivity.feedback, price=price)
    return levels, codes


def _round_across(matrix: Tensor, steps: Tensor, sensitivity: Sensitivity, across: Across, price: Price) -> Tensor:
    """Levels with feedback from row to row of the weight: as :func:`round_weight` does it, turned by a right angle."""
    width = len(across.columns)
    turned = matrix.view(-1, width).T
    by_row = steps.repeat_interleave(turned.shape[1] // len(steps))[None]
    importance = across.columns * sensitivity.unit
    levels = round_weight(turned, by_row, importance, feedback=across.feedback, price=price)
    return levels.T.reshape(matrix.shape)
