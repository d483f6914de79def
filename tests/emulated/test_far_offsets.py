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
    from diffq_fast.backends.triton import add_noise, planes, quantize, uniform_noise, weight_range, words

BF16 = torch.bfloat16
COUNT = 2**31 + 5003
FIRST = COUNT // 8192 * 8192 - 8192  # of the last two tiles
RANGES, EXTREMES = torch.tensor([[-4.0, 4.0]]), torch.tensor([[0, 1, 1, 1]])
WIDTHS = torch.full((1,), 5, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _two_programs_at_each_end(emulator):
    emulator.settings.ends_only = 2


def ends_of(dtype, values):
    """A tensor of COUNT elements that has ``values(number)`` at both ends."""
    made = torch.empty(COUNT, dtype=dtype)
    for ends in (made[:16384], made[FIRST:]):
        ends.copy_(values(ends.numel()))
    return made


@pytest.fixture
def weight():
    return ends_of(BF16, torch.randn)


def steps_of(logits, options):
    """Of bits, of a range of one."""
    at_hi = default.add_noise([torch.tensor([-4.0, 4.0])], logits, KEY, [3], None, *options.operator_arguments())[0][0]
    return (at_hi[0] + 4.0) / (8.0 * philox.uniform(KEY, 3, 0, 1))


def test_noisy_weights_and_gradients_beyond_two_to_the_31(weight, monkeypatch):
    monkeypatch.setattr(add_noise, "tensor_ranges", lambda weights: (RANGES, EXTREMES))
    options, logits = options_of(0), [torch.tensor([0.5])]
    (noisy,), *_ = add_noise.noisy_weights([weight], logits, KEY, [3], options)
    small = weight[FIRST:].float()
    expected = small + 8.0 * steps_of(logits, options) * philox.uniform(KEY, 3, FIRST, COUNT - FIRST)
    assert_near([noisy[FIRST:]], [expected.to(BF16)], 2**-7, 1e-3)
    arguments = [weight], [weight], logits, RANGES, EXTREMES, KEY, [3], *options.operator_arguments()
    (gradient,), *_ = add_noise.add_noise_backward(*arguments)
    assert_same([gradient[FIRST:]], [weight[FIRST:]])


def test_noisy_weights_of_groups_beyond_two_to_the_31(weight, monkeypatch):
    """Each group's step is that of its own logit; here all of the last ones have the same."""
    monkeypatch.setattr(add_noise, "tensor_ranges", lambda weights: (RANGES, EXTREMES))
    logits = torch.empty(-(-COUNT // 8))
    logits[:4096], logits[FIRST // 8 :] = 0.0, 0.5
    (noisy,), *_ = add_noise.noisy_weights([weight], [logits], KEY, [3], options_of(8))
    step = steps_of([torch.tensor([0.5])], options_of(0))
    expected = weight[FIRST:].float() + 8.0 * step * philox.uniform(KEY, 3, FIRST, COUNT - FIRST)
    assert_near([noisy[FIRST:]], [expected.to(BF16)], 2**-7, 1e-3)


@pytest.mark.parametrize("group_size", [8, 7])
def test_ranges_of_groups_beyond_two_to_the_31(weight, group_size):
    """The last whole groups: of groups of 7, those that begin at a multiple of 7."""
    ranges, _ = weight_range.weight_range([weight], group_size, True)
    first = -(-(COUNT - 1400) // group_size)
    expected, _ = default.weight_range([weight[first * group_size :]], group_size, True)
    assert_same([ranges.view(-1, 2)[first:]], [expected.view(-1, 2)])


def test_uniform_noise_of_one_step_beyond_two_to_the_31(weight):
    step = torch.tensor([0.5])
    (noisy,) = uniform_noise.add_uniform_noise([weight], [step], KEY, [3], [0], BF16)
    (at_one,) = default.add_uniform_noise([torch.zeros(1)], [step], KEY, [3], [0])
    scale = at_one / philox.uniform(KEY, 3, 0, 1)
    expected = weight[FIRST:].float() + scale * philox.uniform(KEY, 3, FIRST, COUNT - FIRST)
    assert_near([noisy[FIRST:]], [expected.to(BF16)], 2**-7, 1e-5)


def test_levels_and_words_beyond_two_to_the_31(weight):
    (rounded,) = quantize.fake_quantize([weight], [WIDTHS], RANGES, 0, False)
    first = COUNT // 2048 * 2048 - 2048
    assert_same([rounded[first:]], default.fake_quantize([weight[first:]], [WIDTHS], RANGES, 0, False))
    (levels,) = quantize.quantize([weight], [WIDTHS], RANGES, 0, False)
    assert_same([levels[first:]], default.quantize([weight[first:]], [WIDTHS], RANGES, 0, False))
    packed = words.quantize_pack(weight, WIDTHS, RANGES, 0, False, stream_words(COUNT, 5))
    begin = COUNT // 4096 * 4096 - 4096
    own = stream_words(COUNT - begin, 5)
    assert_same([packed[-own:]], [default.quantize_pack(weight[begin:], WIDTHS, RANGES, 0, False, own)])


def test_weights_of_levels_beyond_two_to_the_31():
    levels = ends_of(torch.int32, lambda number: torch.randint(0, 32, (number,)).int())
    (restored,) = quantize.dequantize([levels], [WIDTHS], RANGES, 0, False, BF16)
    first = COUNT // 2048 * 2048 - 2048
    assert_same([restored[first:]], default.dequantize([levels[first:]], [WIDTHS], RANGES, 0, False, BF16))


def test_weights_of_words_beyond_two_to_the_31():
    begin = COUNT // 4096 * 4096 - 4096
    packed, own = torch.empty(stream_words(COUNT, 5), dtype=torch.int32), stream_words(COUNT - begin, 5)
    packed[:16384], packed[-own:] = 0, torch.randint(-(2**31), 2**31 - 1, (own,)).int()
    options = WIDTHS, RANGES, 0, False
    restored = words.unpack_dequantize(packed, *options, [COUNT], BF16)
    expected = default.unpack_dequantize(packed[-own:], *options, [COUNT - begin], BF16)
    assert_same([restored[begin:]], [expected])


def test_bit_planes_beyond_two_to_the_31():
    """Blocks of 64 rows of 32 columns, in planes of 5 bits."""
    block = 64 * 32
    values = ends_of(torch.int16, lambda number: torch.randint(0, 32, (number,)).to(torch.int16))
    begin = COUNT // block * block - block
    packed = planes.pack_planes(values, 5, 64, 32)
    expected = default.pack_planes(values[begin:], 5, 64, 32)
    assert_same([packed.view(-1)[-expected.numel() :]], [expected.view(-1)])
