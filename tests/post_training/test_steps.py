"""post_training.steps and allocation: the closed form, the sizes foretold, and the scale that is found for them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diffq_fast.post_training.allocation import (
    TABLE_BITS,
    decibels,
    entropy,
    estimate,
    in_one_unit,
    sample_of,
    scale_for,
)
from diffq_fast.post_training.rounding import MOST_LEVEL
from diffq_fast.post_training.steps import Moments, Sensitivity, as_matrix, moments_in_rows, quantise, sensitivity_of

HALF_STEP = 2 ** (1 / 32)  # codes are sixteen to the octave


def weight_of(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(-3, 3, rows)[:, None].exp()
    return spread * torch.randn(rows, columns, generator=generator)


def test_steps_without_calibration_are_in_proportion_to_each_rows_size():
    weight = weight_of(20, 400)
    steps = sensitivity_of(weight, None, "w").steps(0.25)[1]
    ratio = steps / weight.square().mean(1).sqrt()
    assert ratio[5:].min() > 0.5 / HALF_STEP - 1e-6  # rows below a thousandth of the mean square count as that
    assert ratio[5:].max() < 0.5 * HALF_STEP + 1e-6


@pytest.mark.parametrize(
    ("name", "rows", "worth"),
    [
        ("embeddings.word_embeddings.weight", 1600, 0.8),
        ("model.embed_tokens.weight", 16384, 0.25),
        ("transformer.wte.weight", 16384, 0.25),
        ("embeddings.position_embeddings.weight", 1024, 1.0),  # a layer may be as long
        ("lm_head.weight", 16384, 1.0),
        ("member.weight", 16384, 1.0),
    ],
)
def test_a_long_embedding_is_worth_less_by_the_root_of_its_rows(name, rows, worth):
    weight = torch.ones(rows, 256)
    found, layer = sensitivity_of(weight, None, name), sensitivity_of(weight, None, "encoder.dense.weight")
    assert torch.allclose(found.importance / layer.importance, torch.full((rows,), worth))


def test_what_calibration_knows_of_an_embedding_counts_instead_of_its_name():
    weight, rows = torch.ones(16384, 64), torch.ones(16384)
    found = sensitivity_of(weight, Moments(torch.eye(64), rows), "embed_tokens.weight")
    assert torch.equal(found.importance, rows)


def test_another_bit_gains_the_same_in_every_row():
    weight, rows = weight_of(20, 64), torch.linspace(1, 50, 20)
    found = sensitivity_of(weight, Moments(torch.eye(64) * 3, rows), "w")
    steps = found.steps(0.01)[1]
    gain = found.importance * found.column_cost * steps**2 / 0.01
    assert gain.min() > HALF_STEP**-2 - 1e-4
    assert gain.max() < HALF_STEP**2 + 1e-4
    assert found.importance == pytest.approx(rows)


def test_a_row_that_calibration_never_saw_is_not_worthless():
    rows = torch.tensor([0.0, 1.0, 1.0])
    found = sensitivity_of(weight_of(3, 64), Moments(torch.eye(64), rows), "w")
    assert found.importance[0] == pytest.approx(2e-3 / 3)


def test_rows_alone_say_what_rows_are_worth_against_each_other():
    weight, rows = weight_of(3, 64), torch.tensor([1.0, 2.0, 4.0])
    found = sensitivity_of(weight, Moments(None, rows), "w")
    assert found.importance / found.importance[0] == pytest.approx(rows)
    assert float(found.importance @ weight.square().sum(1)) == pytest.approx(weight.numel(), rel=1e-4)


@pytest.mark.parametrize(
    ("moments", "words"),
    [
        (Moments(torch.eye(63), None), r"expected columns of shape \[64, 64\] or \[64\], got \[63, 63\]"),
        (Moments(None, torch.ones(4)), r"expected rows of shape \[3\], got \[4\]"),
        (Moments(None, torch.tensor([1.0, math.nan, 1.0])), "expected rows finite and not negative"),
        (Moments(-torch.eye(64), None), "expected columns finite and not negative"),
    ],
)
def test_moments_that_do_not_fit_are_refused(moments, words):
    with pytest.raises(ValueError, match=f"calibration of layer.w: {words}"):
        sensitivity_of(weight_of(3, 64), moments, "layer.w")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 100), (10, 100)),
        ((8, 4, 3, 3), (4, 72)),
        ((64, 1, 3, 3), (8, 72)),
        ((7, 3), (7, 3)),
        ((2, 3, 70), (2, 210)),
    ],
)
def test_short_rows_share_a_step(shape, expected):
    assert as_matrix(torch.ones(shape, dtype=torch.bfloat16)).shape == expected


def test_quantised_rows_are_near_and_cheap():
    weight = weight_of(64, 128)
    found = sensitivity_of(weight, None, "w")
    levels, codes = quantise(weight, found, 0.25)
    errors = (weight - levels * found.step_values(codes)[:, None]) / found.step_values(codes)[:, None]
    assert errors.abs().max() < 1
    assert errors.square().mean() == pytest.approx(1 / 12, rel=0.3)
    nearest = (weight / found.step_values(codes)[:, None]).round()
    assert entropy(levels) < entropy(nearest) - 0.02


def test_the_estimate_is_what_quantising_comes_to():
    weight = weight_of(128, 256)
    found = sensitivity_of(weight, None, "w")
    sample = sample_of("w", weight, found, relative=True)
    foretold = estimate(sample, 0.1)
    levels, codes = quantise(weight, found, 0.1)
    bits = entropy(levels) * weight.numel() + entropy(codes) * 128 + TABLE_BITS
    noise = float(found.importance @ (weight - levels * found.step_values(codes)[:, None]).square().sum(1))
    assert foretold.bits == pytest.approx(bits, rel=0.01)
    assert foretold.noise == pytest.approx(noise, rel=0.03)
    assert foretold.signal == pytest.approx(float(found.importance @ weight.square().sum(1)), rel=1e-3)
    assert foretold.quality == pytest.approx(decibels(foretold.signal, noise), abs=0.2)


@pytest.mark.parametrize("given", ["rows", "columns and rows"])
def test_no_level_lies_beyond_those_of_a_file_however_dear_errors_are(given):
    """Moments of sounds differ by 10^8 between bands: the steps asked for are a millionth of the largest elements."""
    weight = weight_of(32, 40)
    seen = torch.randn(200, 40, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -4, 40)
    columns = seen.T @ seen / 200 if given == "columns and rows" else None
    found = sensitivity_of(weight, Moments(columns, torch.full((32,), 1e12)), "w")
    levels, codes = quantise(weight, found, 1e-9)
    assert levels.abs().max() < MOST_LEVEL
    errors = weight - levels * found.step_values(codes)[:, None]
    cost = columns if columns is not None else torch.eye(40)
    assert decibels(float(((weight @ cost) * weight).sum()), float(((errors @ cost) * errors).sum())) > 80


def test_weights_without_calibration_are_worth_the_mean_of_those_with_it():
    weight = weight_of(16, 64)
    known = sample_of("known", weight, Sensitivity(torch.full((16,), 1e-9)), relative=False)
    other = sample_of("other", weight[4:], sensitivity_of(weight[4:], None, "other"), relative=True)
    factors = in_one_unit([known, other])
    scaled = [each.scaled(factors[each.name]) for each in (known, other)]
    assert scaled[0].signal / scaled[0].count == pytest.approx(1.0)
    assert scaled[1].signal / scaled[1].count == pytest.approx(1.0, rel=0.03)  # tiny rows count a bit less


def test_the_scale_is_found_from_either_side():
    assert scale_for(lambda scale: scale <= 0.37, rising=True) == pytest.approx(0.37, rel=2e-3)
    assert scale_for(lambda scale: scale <= 0.37, rising=True) <= 0.37
    assert scale_for(lambda scale: scale >= 5.0, rising=False) == pytest.approx(5.0, rel=2e-3)
    assert scale_for(lambda scale: scale >= 5.0, rising=False) >= 5.0
    with pytest.raises(ValueError, match="no step gives what is asked for"):
        scale_for(lambda scale: False, rising=True)


@pytest.mark.parametrize("diagonal", [False, True])
def test_moments_of_short_rows_cost_what_they_do_row_by_row(diagonal):
    """Rows of fewer than 64 elements share a step, and their moments a matrix: the cost of an error stays the same."""
    generator = torch.Generator().manual_seed(0)
    weight, seen = torch.randn(64, 40, generator=generator), torch.randn(100, 40, generator=generator)
    columns = seen.square().mean(0) if diagonal else seen.T @ seen / 100
    rows = torch.rand(32, generator=generator).repeat_interleave(2)  # equal in the rows that are put together
    matrix = as_matrix(weight)
    assert matrix.shape == (32, 80)
    found = moments_in_rows(Moments(columns, rows), weight, matrix, "w")
    full, wide = (each.diag() if diagonal else each for each in (columns, found.columns))
    torch.testing.assert_close(
        (found.rows * ((matrix @ wide) * matrix).sum(1)).sum(), (rows * ((weight @ full) * weight).sum(1)).sum()
    )


def test_moments_that_do_not_fit_short_rows_are_refused():
    weight = torch.ones(64, 40)
    with pytest.raises(ValueError, match=r"of w: expected columns of shape \[40, 40\] or \[40\], got \[80\]"):
        moments_in_rows(Moments(torch.ones(80)), weight, as_matrix(weight), "w")
    with pytest.raises(ValueError, match=r"of w: expected rows of shape \[64\], got \[32\]"):
        moments_in_rows(Moments(rows=torch.ones(32)), weight, as_matrix(weight), "w")


@pytest.mark.parametrize("shape", [(96, 64), (64, 8)])
def test_feedback_goes_from_row_to_row_where_columns_are_multiplied(shape):
    """As with the weight turned by a right angle: the cost is measured as calibration defines it. Short rows share a
    step, each in groups of eight."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator)
    mixed = torch.randn(shape[0], shape[0], generator=generator) * torch.logspace(0, -1.5, shape[0])
    seen = torch.randn(500, shape[0], generator=generator) @ mixed.T
    moments = Moments(torch.rand(shape[1], generator=generator) + 0.5, seen.T @ seen / 500)
    matrix = as_matrix(weight)
    found = sensitivity_of(matrix, moments_in_rows(moments, weight, matrix, "w"), "w")
    assert len(found.importance) == len(matrix)

    def cost(levels, codes):
        errors = (matrix - levels * found.step_values(codes)[:, None]).view(shape)
        return float(((moments.rows @ errors) * errors).sum(0) @ moments.columns), entropy(levels)

    fed_back, bits = cost(*quantise(matrix, found, 0.02))
    rounded, plain_bits = cost(*quantise(matrix, replace(found, across=None), 0.02))
    assert fed_back < 0.7 * rounded
    assert bits < 1.1 * plain_bits


def test_moments_between_rows_that_do_not_fit_are_refused():
    weight = weight_of(8, 64)
    with pytest.raises(ValueError, match=r"of w: rows of shape \[7, 7\] do not fit the weight's elements"):
        sensitivity_of(weight, Moments(rows=torch.eye(7)), "w")
    with pytest.raises(ValueError, match=r"expected columns beside a matrix of rows of shape \[64\], got \[64, 64\]"):
        sensitivity_of(weight, Moments(torch.eye(64), torch.eye(8)), "w")
    with pytest.raises(ValueError, match=r"of w: expected rows of shape \[8, 8\], got \[8, 3\]"):
        sensitivity_of(weight, Moments(rows=torch.ones(8, 3)), "w")
