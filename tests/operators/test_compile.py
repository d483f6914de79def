"""Compiled operators: the operators against the oracle."""

from __future__ import annotations

import pytest
import torch

from diffq_fast import functional
from support.operators import KEY, leaves


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("range_scope", ["tensor", "group"])
def test_compiled_add_noise_equals_eager(range_scope):
    weights, logits = [torch.randn(6, 5), torch.randn(9)], [torch.randn(4), torch.randn(2)]

    options = functional.NoiseOptions(range_scope=range_scope)

    def step(weights, logits, key):
        noisy, found = functional.add_noise(weights, logits, key, options)
        return noisy[0].square().sum() + noisy[1].sin().sum(), found

    def run(function, key):
        weight_leaves, logit_leaves = leaves(weights), leaves(logits)
        loss, found = function(weight_leaves, logit_leaves, key)
        loss.backward()
        return [loss.detach(), found, *(leaf.grad for leaf in weight_leaves + logit_leaves)]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for key in (KEY, KEY + 1):
        for a, b in zip(run(compiled, key), run(step, key), strict=True):
            assert torch.equal(a, b)


def test_a_compiled_step_draws_a_fresh_key_each_time():
    weight, logit = torch.randn(6, 5), torch.randn(4)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(weight, logit):
        return functional.add_noise([weight], [logit], functional.draw_key(weight)).noisy[0]

    torch.manual_seed(0)
    first, second = step(weight, logit), step(weight, logit)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(step(weight, logit), first)
