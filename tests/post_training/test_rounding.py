"""post_training.rounding: feedback as the method has it, a price takes the cheaper level, nothing overflows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffq_fast.post_training.rounding import Price, bits_of_levels, feedback_of, round_weight


def correlated(columns: int, seed: int = 0) -> Tensor:
    """Second moments of inputs that a few directions make up."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, columns, generator=generator) @ torch.diag(torch.linspace(2, 0.05, columns))
    inputs = inputs @ torch.randn(columns, columns, generator=generator)
    return inputs.T @ inputs / 256


def weight_of(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def cost(errors: Tensor, moments: Tensor) -> float:
    return float(((errors @ moments) * errors).sum())


def rounded_by_definition(row: Tensor, step: float, moments: Tensor) -> Tensor:
    """Column by column, large moments first: the rest is moved to where the damped error is the smallest."""
    count = len(row)
    damped = moments.double() + 0.01 * moments.diagonal().double().mean() * torch.eye(count, dtype=torch.float64)
    order = moments.diagonal().argsort(descending=True)
    row, levels = row.double().clone(), torch.zeros(count, dtype=torch.int32)
    for place, column in enumerate(order):
        levels[column] = int(torch.round(row[column] / step))
        error = row[column] - levels[column] * step
        rest = order[place + 1 :]
        row[column] = levels[column] * step
        row[rest] += error * torch.linalg.solve(damped[rest][:, rest], damped[rest, column])
    return levels


@pytest.mark.parametrize("columns", [1, 2, 7, 63, 64, 65, 130])
def test_feedback_equals_its_definition(columns):
    moments, weight = correlated(columns), weight_of(3, columns)
    levels = round_weight(weight, torch.full((3,), 0.5), torch.ones(3), feedback=feedback_of(moments))
    expected = torch.stack([rounded_by_definition(row, 0.5, moments) for row in weight])
    assert (levels != expected).float().mean() <= 0.02  # float32 against float64: a value right between two levels


@pytest.mark.parametrize("count", [1, 70, 256, 257, 600])
def test_the_factor_is_that_of_the_inverse(count):
    values = torch.randn(2 * count, count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    moments = values.T @ values
    feedback = feedback_of(moments, damping=0.0)
    inverse = torch.linalg.inv(moments[feedback.order][:, feedback.order])
    assert torch.equal(feedback.upper, feedback.upper.triu())
    expected = torch.linalg.cholesky(inverse, upper=True)
    torch.testing.assert_close(feedback.upper.double(), expected, rtol=1e-5, atol=1e-6 * float(expected.max()))
    errors = feedback.errors[feedback.order].double()
    torch.testing.assert_close(errors, 1 / expected.diagonal() ** 2, rtol=1e-5, atol=0)


def test_steps_of_columns_are_columns_in_units_of_their_steps():
    """Levels of w at the steps s, with moments M, are those of w / s at steps of 1, with s M s."""
    generator = torch.Generator().manual_seed(5)
    weight, steps = weight_of(6, 20), 1 + 0.1 * torch.rand(20, generator=generator)
    seen = torch.randn(300, 20, generator=generator, dtype=torch.float64) * torch.logspace(2, 0, 20)
    moments = seen.T @ seen / 300  # of columns whose order is the same in both units
    price = Price(0.01, -3, torch.tensor([6.0, 4.0, 2.0, 1.0, 2.0, 4.0, 6.0]))
    importance = torch.full((6,), 1e-4)
    ours = round_weight(weight, steps[None], importance, feedback=feedback_of(moments, damping=0.0), price=price)
    scaled = feedback_of(steps.double()[:, None] * moments * steps.double(), damping=0.0)
    theirs = round_weight(weight / steps, torch.ones(6), importance, feedback=scaled, price=price)
    assert torch.equal(ours, theirs)
    plain = round_weight(weight, steps[None], importance)
    assert torch.equal(plain, (weight / steps).round().to(torch.int32))


def test_feedback_lowers_the_error_of_the_outputs():
    moments, weight, steps = correlated(96), weight_of(32, 96), torch.full((32,), 0.5)
    nearest = round_weight(weight, steps, torch.ones(32))
    fed_back = round_weight(weight, steps, torch.ones(32), feedback=feedback_of(moments))
    errors = [cost(weight - levels * 0.5, moments) for levels in (nearest, fed_back)]
    assert errors[1] < 0.5 * errors[0]
    assert (weight - nearest * 0.5).abs().max() <= 0.25


def test_feedback_of_uncorrelated_inputs_is_rounding_to_the_nearest():
    weight, steps = weight_of(8, 70), torch.full((8,), 0.3)
    feedback = feedback_of(torch.diag(torch.linspace(1, 2, 70)))
    assert torch.equal(
        round_weight(weight, steps, torch.ones(8), feedback=feedback), round_weight(weight, steps, torch.ones(8))
    )


@pytest.mark.parametrize(
    "moments", [torch.zeros(5, 5), torch.ones(5, 5), torch.diag(torch.tensor([1e30, 1.0, 0, 0, 0]))]
)
def test_moments_that_have_no_inverse_are_damped(moments):
    feedback = feedback_of(moments)
    assert torch.isfinite(feedback.upper).all()
    levels = round_weight(weight_of(2, 5), torch.ones(2), torch.ones(2), feedback=feedback)
    assert levels.abs().max() < 100


def test_impossible_moments_are_refused():
    with pytest.raises(ValueError, match="found NaN or infinity"):
        feedback_of(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="not positive semidefinite"):
        feedback_of(torch.tensor([[1.0, 1e6], [1e6, 1.0]]))


def test_a_price_takes_the_cheaper_of_the_two_nearest_levels():
    values, importance, step, per_bit = torch.linspace(-3.2, 3.2, 129)[None], torch.tensor([3.0]), 0.5, 0.05
    bits = torch.tensor([7.0, 6, 5, 4, 3, 2, 1, 0.5, 1, 2, 3, 4, 5, 6, 7])
    levels = round_weight(values, torch.tensor([step]), importance, price=Price(per_bit, -7, bits))
    for value, level in zip(values[0].tolist(), levels[0].tolist(), strict=True):
        nearest = round(value / step)
        smaller = nearest - (nearest > 0) + (nearest < 0)
        costs = {
            each: 3.0 * (value - each * step) ** 2 + per_bit * float(bits[each + 7]) for each in (nearest, smaller)
        }
        assert costs[level] <= min(costs.values()) + 1e-6
    assert (levels != round_weight(values, torch.tensor([step]), importance)).any()


def test_levels_stay_in_sixteen_bits():
    levels = round_weight(torch.tensor([[1e30, -1e30]]), torch.tensor([1e-3]), torch.ones(1))
    assert levels.tolist() == [[32767, -32767]]


def test_bits_follow_from_how_often_a_level_occurs():
    lowest, bits = bits_of_levels(torch.tensor([-1] * 10 + [0] * 100 + [2]))
    assert lowest == -1
    assert bits[1] < bits[0] < bits[3] < bits[2]
    assert 2 ** -bits.double() == pytest.approx(torch.tensor([10.5, 100.5, 0.5, 1.5]).double() / 113)
