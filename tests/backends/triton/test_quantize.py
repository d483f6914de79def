"""Levels equal the oracle's where rounding is hard; whole weights: ``test_words.py``."""

from __future__ import annotations

import importlib.util

import torch

from diffq_fast.backends import default
from support.triton_weights import EPSILON, assert_same, interpreted, needs_triton

pytestmark = needs_triton

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton.quantize import quantize


@interpreted
def test_levels_of_halves_ties_constants_and_outliers_equal_the_oracle():
    for dtype in EPSILON:
        weight = torch.linspace(-1, 1, 1021).to(dtype)
        widths = torch.tensor([8], dtype=torch.uint8)
        for ranges in ([[-1.0, 1.0]], [[0.25, 0.25]], [[-0.5, 0.5]], [[float("nan"), float("nan")]]):
            arguments = [widths], torch.tensor(ranges), 0, False
            assert_same(quantize([weight], *arguments), default.quantize([weight], *arguments))
