"""The device functions of the parametrisation against ``reference/bits.py``."""

from __future__ import annotations

import pytest
import torch

from diffq_fast.reference.bits import step_and_derivative
from support.triton_weights import EMULATED, INTERPRETED, interpreted, needs_triton

pytestmark = needs_triton

if INTERPRETED or EMULATED:
    import triton
    import triton.language as tl

    from diffq_fast.backends.triton import arguments, arithmetic


@interpreted
@pytest.mark.parametrize("param", ["bits", "noise"])
def test_step_and_derivative_equal_bits(param):
    @triton.jit
    def kernel(logit, step, again, derivative, rule, CONFIG: tl.constexpr, SIZE: tl.constexpr):  # noqa: N803
        at = tl.arange(0, SIZE)
        value = tl.load(logit + at)
        tl.store(step + at, arithmetic.step_of(value, rule, CONFIG))
        same, slope = arithmetic.step_and_derivative(value, rule, CONFIG)
        tl.store(again + at, same)
        tl.store(derivative + at, slope)

    logits = torch.linspace(-12, 12, 64)
    logits[0], logits[-1] = -1e4, 1e4
    step, again, derivative = (torch.full((64,), float("nan")) for _ in range(3))
    rule, config = arguments.rule_of(2.0, 15.0, param), arguments.Config(param=param)
    kernel[(1,)](logits, step, again, derivative, rule, CONFIG=config, SIZE=64)
    expected, slope = step_and_derivative(logits, 2.0, 15.0, param)
    torch.testing.assert_close(step, expected, rtol=3e-6, atol=0)
    torch.testing.assert_close(again, expected, rtol=3e-6, atol=0)
    torch.testing.assert_close(derivative, slope, rtol=5e-6, atol=1e-12)
