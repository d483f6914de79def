"""Noise: the operators against the oracle."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from diffq_fast import functional
from support.operators import KEY, KINDS, add_noise, check, ops, options_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_opcheck_draw_key():
    results = opcheck(ops.draw_key.default, (torch.zeros(3),), test_utils=["test_schema", "test_faketensor"])
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 9), (2**35 + 3, 30)])
def test_opcheck_noise(first, count, kind):
    check(ops.noise.default, KEY, 2**32 - 1, first, count, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_key_gives_the_same_noise_and_another_key_other_noise(kind):
    weight, logit, options = torch.randn(200, 11), torch.zeros(275), options_of(8, kind=kind)
    noisy = add_noise([weight], [logit], *options)[0]
    assert torch.equal(noisy, add_noise([weight], [logit], *options)[0])
    others = [
        add_noise([weight], [logit], *options, key=KEY + 1)[0],
        add_noise([weight], [logit], *options, key=KEY + 2**32)[0],
        add_noise([weight], [logit], *options, streams=[1])[0],
    ]
    for other in others:
        assert (other != noisy).double().mean() > 0.9


def test_draw_key_follows_torch_manual_seed_and_uses_all_bits():
    """False alarm: each bit of 2,000 keys is a fair coin, 5.5 standard deviations: 4e-8 per bit."""
    torch.manual_seed(5)
    first = [int(ops.draw_key(torch.zeros(1))) for _ in range(2000)]
    torch.manual_seed(5)
    assert [int(ops.draw_key(torch.zeros(2, dtype=torch.bfloat16))) for _ in range(2000)] == first
    torch.manual_seed(6)
    assert int(ops.draw_key(torch.zeros(1))) != first[0]
    assert len(set(first)) == 2000
    for bit in range(64):
        ones = sum(key >> bit & 1 for key in first)
        assert abs(ones - 1000) < 5.5 * 2000**0.5 / 2, bit


def test_noise_does_not_touch_torchs_generator():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    add_noise([torch.ones(9)], [torch.zeros(2)], *options_of(8))
    functional.noise(KEY, 0, 5)
    assert torch.equal(torch.rand(3), expected)
