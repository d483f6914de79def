"""Each operator gives the same bits whatever torch's default dtype and default device are."""

from __future__ import annotations

import pytest
import torch

from diffq_fast import functional
from diffq_fast.backends import cpu
from diffq_fast.backends import default as plain
from diffq_fast.reference import bits
from diffq_fast.reference.even_levels import level_count
from support.defaults import DEFAULTS, default
from support.operators import KEY, logits_of, ops, options_of, weights_of, widths_of

LARGE = 400_000 if cpu.status()[0] else 1000  # results of so many elements come from the core's blocks


def assert_same(value, make):
    expected = make()
    with default(value):
        made = make()
    assert len(made) == len(expected)
    for one, another in zip(made, expected, strict=True):
        assert (one.dtype, one.device, one.shape) == (another.dtype, another.device, another.shape)
        torch.testing.assert_close(one, another, rtol=0, atol=0, equal_nan=True)


def flat(results):
    """The tensors of nested tuples and lists."""
    if isinstance(results, torch.Tensor):
        return [results]
    return [tensor for each in results for tensor in flat(each)]


def weights_with_a_large_one(dtype):
    count = 1000 if dtype == torch.float64 else LARGE  # the core has no float64
    return [*weights_of(dtype), torch.linspace(-1, 1, count).to(dtype)]


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_noise_and_its_gradients(value, dtype, per_group):
    weights = weights_with_a_large_one(dtype)
    logits, streams = logits_of(weights, 8), list(range(len(weights)))
    options = options_of(8, per_group=per_group)

    def made():
        noisy, ranges, extremes = ops.add_noise(weights, logits, KEY, streams, None, *options)
        back = ops.add_noise_backward(weights, weights, logits, ranges, extremes, KEY, streams, *options)
        return flat([noisy, ranges, extremes, back, functional.noise(KEY, 3, LARGE)])

    assert_same(value, made)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_levels_words_and_weights(value, dtype, per_group):
    weights = weights_with_a_large_one(dtype)
    widths, scope = widths_of(weights, 8), "group" if per_group else "tensor"
    grouping = {"group_size": 8, "range_scope": scope}

    def made():
        ranges = functional.weight_range(weights, **grouping)
        own = functional.weight_range(weights[-1:], **grouping)
        levels = functional.quantize(weights, widths, ranges, **grouping)
        back = functional.dequantize(levels, widths, ranges, dtype=dtype, **grouping)
        rounded = functional.fake_quantize(weights, widths, ranges, **grouping)
        words = functional.quantize_pack(weights[-1], widths[-1], own, **grouping)
        assert torch.equal(words, functional.pack(levels[-1], widths[-1], group_size=8))
        count = weights[-1].numel()
        unpacked = functional.unpack(words, widths[-1], count, group_size=8)
        weight = functional.unpack_dequantize(words, widths[-1], own, [count], **grouping)
        return flat([ranges, levels, back, rounded, words, unpacked, weight])

    assert_same(value, made)


@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_planes(value):
    weight, values = torch.linspace(-1, 1, LARGE), torch.arange(LARGE, dtype=torch.int32) % 8
    (widths,) = widths_of([weight], 8)

    def made():
        planes = functional.pack_planes(values, 3)
        of_weight = functional.quantize_planes(weight, widths, functional.weight_range([weight]))
        return flat([planes, of_weight, functional.unpack_planes(planes, LARGE)])

    assert_same(value, made)


@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_bits_and_widths(value):
    logits = torch.linspace(-9, 9, 30_000)

    def made():
        widths = functional.widths_from_logits(logits, 2.25, 15, "noise", 0.5)
        real = functional.bits_from_logits(logits, 2, 15)
        step = functional.step_from_bits(real)
        counts = ops.count_widths(widths)
        return [widths, real, step, counts, bits.initial_logit(8.1, 2, 15), level_count(9.6)]

    assert_same(value, made)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("value", DEFAULTS, ids=str)
def test_the_plain_kernels(value, per_group):
    weights = weights_of()
    logits, widths, streams = logits_of(weights, 4), widths_of(weights, 4), list(range(len(weights)))
    options = options_of(4, param="noise", per_group=per_group)

    def made():
        noisy, ranges, extremes = plain.add_noise(weights, logits, KEY, streams, None, *options)
        back = plain.add_noise_backward(weights, weights, logits, ranges, extremes, KEY, streams, *options)
        levels = plain.quantize(weights, widths, ranges, 4, per_group)
        rounded = plain.fake_quantize(weights, widths, ranges, 4, per_group)
        words = plain.pack(levels[0], widths[0], 4, 0)
        planes = plain.pack_planes_seen(levels[0], 16, 64, 32)
        rest = plain.unpack(words, widths[0], 4, weights[0].numel()), plain.unpack_planes(planes[0], 9)
        return flat([noisy, ranges, extremes, back, levels, rounded, words, planes, rest])

    assert_same(value, made)
