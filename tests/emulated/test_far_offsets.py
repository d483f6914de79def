"""Weights of more than 2**31 elements: of a launch's programs the first and the last run, over memory that takes no
space where nobody touches it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.reference import philox
from diffq_fast.reference.sizes import stream_words
from support.triton_weights import INTERPRETED, KEY, assert_near, assert_same, needs_triton, options_of

pytestmark = [
    needs_triton,
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled"),
    pytest.mark.usefixtures("emulator"),
]

if importlib.util.find_spec("triton"):
    from diffq_fast.backends.triton import add_noise, words
    from diffq_fast.backends.triton.quantize import fake_quantize

COUNT = 2**31 + 5003
FIRST = COUNT // 8192 * 8192 - 8192  # of the last two tiles
RANGES, EXTREMES = torch.tensor([[-4.0, 4.0]]), torch.tensor([[0, 1, 1, 1]])


@pytest.fixture
def weight(emulator):
    emulator.settings.ends_only = 2
    made = torch.empty(COUNT, dtype=torch.bfloat16)
    for ends in (made[:16384], made[FIRST:]):
        ends.copy_(torch.randn(ends.numel()))
    return made


def test_noisy_weights_and_gradients_beyond_two_to_the_31(weight, monkeypatch):
    monkeypatch.setattr(add_noise, "tensor_ranges", lambda weights: (RANGES, EXTREMES))
    options, logits = options_of(0), [torch.tensor([0.5])]
    (noisy,), *_ = add_noise.noisy_weights([weight], logits, KEY, [3], options)
    small = weight[FIRST:].float()
    steps = default.add_noise([torch.tensor([-4.0, 4.0])], logits, KEY, [3], None, *options.operator_arguments())[0][0]
    step = (steps[0] + 4.0) / (8.0 * philox.uniform(KEY, 3, 0, 1))
    expected = small + 8.0 * step * philox.uniform(KEY, 3, FIRST, COUNT - FIRST)
    assert_near([noisy[FIRST:]], [expected.to(torch.bfloat16)], 2**-7, 1e-3)
    arguments = [weight], [weight], logits, RANGES, EXTREMES, KEY, [3], *options.operator_arguments()
    (gradient,), *_ = add_noise.add_noise_backward(*arguments)
    assert_same([gradient[FIRST:]], [weight[FIRST:]])


def test_levels_and_words_beyond_two_to_the_31(weight):
    widths = torch.full((1,), 5, dtype=torch.uint8)
    (rounded,) = fake_quantize([weight], [widths], RANGES, 0, False)
    first = COUNT // 2048 * 2048 - 2048
    assert_same([rounded[first:]], default.fake_quantize([weight[first:]], [widths], RANGES, 0, False))
    packed = words.quantize_pack(weight, widths, RANGES, 0, False, stream_words(COUNT, 5))
    begin = COUNT // 4096 * 4096 - 4096
    own = stream_words(COUNT - begin, 5)
    assert_same([packed[-own:]], [default.quantize_pack(weight[begin:], widths, RANGES, 0, False, own)])
