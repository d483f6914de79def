"""Every Triton kernel against the oracle, on the CPU: Triton's interpreter runs them under
``TRITON_INTERPRET=1``.

Without that variable this file starts itself again with it. Draws, levels and words must be equal bit for
bit, and so must noisy weights of another dtype be equal to float32 ones that are cast. Against the oracle, noisy
weights and gradients agree as the compiled core's do.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffq_fast.backends import default
from diffq_fast.reference.bits import step_and_derivative
from diffq_fast.reference.groups import per_element
from diffq_fast.reference.sizes import group_count, stream_words

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the subprocess with TRITON_INTERPRET=1")

if INTERPRETED and importlib.util.find_spec("triton"):
    import triton
    import triton.language as tl

    from diffq_fast.backends.triton import arithmetic, backward, export, forward, launching

COUNTS = (0, 1, 7, 8, 9, 1023, 8192, 8200)
GROUP_SIZES = (0, 1, 2, 4, 8, 16, 1024, 4096, 7, 3000)
KEY = torch.tensor(-0x123456789ABCDEF)
EPSILON = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def make(counts, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).to(dtype) for count in counts]


def make_logits(weights, group_size):
    return [2 * logit for logit in make([group_count(w.numel(), group_size) for w in weights], seed=1)]


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def assert_near(got, expected, rtol, atol):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(INTERPRETED, reason="would start itself for ever")
def test_kernels_under_the_interpreter():
    files = [__file__, Path(__file__).with_name("test_ticketed.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


# -- device functions ----------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize("param", ["bits", "noise"])
def test_step_and_derivative_equal_bits(param):
    @triton.jit
    def kernel(logit, step, again, derivative, low, high, PARAM: tl.constexpr, SIZE: tl.constexpr):  # noqa: N803
        at = tl.arange(0, SIZE)
        value = tl.load(logit + at)
        tl.store(step + at, arithmetic.step_of(value, low, high, PARAM, False))
        first, second = arithmetic.step_and_derivative(value, low, high, PARAM, False)
        tl.store(again + at, first)
        tl.store(derivative + at, second)

    logits = torch.linspace(-12, 12, 64)
    logits[0], logits[-1] = -1e4, 1e4
    step, again, derivative = (torch.full((64,), float("nan")) for _ in range(3))
    kernel[(1,)](logits, step, again, derivative, *launching.curve_of(2.0, 15.0, param), PARAM=param, SIZE=64)
    expected, slope = step_and_derivative(logits, 2.0, 15.0, param)
    torch.testing.assert_close(step, expected, rtol=3e-6, atol=0)
    torch.testing.assert_close(again, expected, rtol=3e-6, atol=0)
    torch.testing.assert_close(derivative, slope, rtol=5e-6, atol=1e-12)


# -- training ------------------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize("first", [0, 13, 4095, 2**35 - 100])
def test_noise_equals_the_oracle(first):
    for count in (0, 1, 9, 5000):
        assert torch.equal(
            forward.noise(KEY, 5, first, count, "uniform"), default.noise(KEY, 5, first, count, "uniform")
        )
        arguments = KEY, 2**32 - 1, first, count, "gaussian"
        torch.testing.assert_close(forward.noise(*arguments), default.noise(*arguments), rtol=0, atol=2e-6)


@interpreted
@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("group_size", [0, 8, 7, 3000])
def test_range_equals_the_oracle(dtype, group_size):
    weights = make((*COUNTS, 20000), dtype)
    for per_group in (False, True):
        assert_same(
            forward.weight_range(weights, group_size, per_group),
            default.weight_range(weights, group_size, per_group),
        )


@interpreted
def test_range_of_ties_constants_nan_and_infinities_equals_the_oracle():
    nan, inf = float("nan"), float("inf")
    weights = [torch.ones(20000), torch.tensor([1.0, -2, 1, -2, 0]), torch.tensor([1.0, nan])]
    weights += [torch.tensor([0.0, -0.0]), torch.full((9,), inf), torch.tensor([-inf, 1.0])]
    weights += [torch.cat([torch.randn(9000), torch.tensor([nan])])]
    for per_group in (False, True):
        assert_same(forward.weight_range(weights, 2, per_group), default.weight_range(weights, 2, per_group))


def both_passes(weights, grads, group_size, per_group, kind, param):
    """Outputs of forward and backward from the kernels and from the oracle."""
    logits = make_logits(weights, group_size)
    options = group_size, 2.0, 15.0, param, kind, per_group
    streams = list(range(3, 3 + len(weights)))
    results = []
    for add_noise, add_noise_backward in (
        (forward.add_noise, backward.add_noise_backward),
        (default.add_noise, default.add_noise_backward),
    ):
        noisy, found, extremes = add_noise(weights, logits, KEY, streams, None, *options)
        gradients = add_noise_backward(grads, weights, logits, found, extremes, KEY, streams, *options)
        results.append((noisy, found, extremes, *gradients))
    return results


def assert_passes_equal(weights, grads, group_size, per_group, kind="uniform", param="bits"):
    got, expected = both_passes(weights, grads, group_size, per_group, kind, param)
    epsilon = EPSILON[weights[0].dtype]
    assert_near(got[0], expected[0], epsilon, 2e-5)
    assert_same(got[1:3], expected[1:3])
    assert_near(got[3], expected[3], max(epsilon, 1e-5), 1e-4)
    for one, other in zip(got[4], expected[4], strict=True):
        assert one.shape == other.shape
        scale = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6 * scale)
    assert torch.equal(got[5], expected[5])


@interpreted
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_training_equals_the_oracle(group_size, per_group):
    assert_passes_equal(make(COUNTS), make(COUNTS, seed=3), group_size, per_group, "gaussian", "noise")


@interpreted
@pytest.mark.parametrize("group_size", [1, 8, 7])
@pytest.mark.parametrize("dtype", EPSILON)
def test_training_in_each_dtype_equals_the_oracle(dtype, group_size):
    counts = (9, 8200)
    assert_passes_equal(make(counts, dtype), make(counts, dtype, seed=3), group_size, False)
    assert_passes_equal(make(counts, dtype), make(counts, dtype, seed=3), group_size, True)


@interpreted
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 4, 3000])
def test_gradient_of_ties_equals_the_oracle(group_size, per_group):
    tied = make((20000,))[0].clamp(-1, 1)
    weights = [tied, torch.ones(100), torch.tensor([1.0, 1.0, -1.0]), torch.tensor([1.0, float("nan"), 2.0])]
    grads = make([w.numel() for w in weights], seed=3)
    grads[1][3] = float("inf")
    weights.pop(1), grads.pop(1)
    assert_passes_equal(weights, grads, group_size, per_group)


@interpreted
def test_constant_weight_has_no_range_gradient():
    assert_passes_equal([torch.ones(100)], make((100,)), 8, False)


@interpreted
def test_nonfinite_gradients_are_zeroed_and_counted():
    weights, grads = make((9000, 40)), make((9000, 40), seed=3)
    grads[0][17], grads[0][8999], grads[1][3] = float("nan"), float("inf"), float("-inf")
    for group_size in (0, 8, 7):
        got, expected = both_passes(weights, grads, group_size, False, "uniform", "bits")
        assert torch.equal(got[5], expected[5])
        assert all(gradient.isfinite().all() for gradient in got[4])


@interpreted
def test_mixed_dtypes_and_layouts_keep_their_places():
    weights = [
        make((24,))[0].to(torch.bfloat16),
        make((90,), seed=4)[0].view(9, 10).t(),
        make((33,), seed=5)[0],
    ]
    got, expected = both_passes(weights, [w.clone() for w in weights], 4, False, "uniform", "bits")
    assert [noisy.dtype for noisy in got[0]] == [weight.dtype for weight in weights]
    assert got[0][1].shape == (10, 9)
    assert got[0][1].is_contiguous()
    for one, other in zip(got[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2e-5)


@interpreted
def test_unaligned_views_equal_the_oracle():
    counts = (8192, 8200)
    weights, grads = ([t[1:] for t in make([c + 1 for c in counts], seed=s)] for s in (0, 3))
    assert weights[0].data_ptr() % 16 == 4
    assert_passes_equal(weights, grads, 8, False)


@interpreted
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 8, 4096, 7])
def test_noisy_weights_of_another_dtype_equal_those_cast_to_it(group_size, per_group):
    weights = [*make((9, 8200)), make((8193,), seed=5)[0][1:], torch.tensor([1.0, float("nan")])]
    lists = weights, make_logits(weights, group_size), KEY, list(range(len(weights))), None
    options = group_size, 2.0, 15.0, "bits", "uniform", per_group
    expected, found, extremes = forward.add_noise(*lists, *options)
    for dtype in (torch.bfloat16, torch.float16):
        noisy, *bounds = forward.add_noise(*lists, *options, dtype)
        assert_same(noisy, [tensor.to(dtype) for tensor in expected])
        assert_same(bounds, [found, extremes])


@interpreted
def test_noisy_weights_of_half_precision_ones_are_rounded_once():
    weights = make((8200, 9), torch.bfloat16)
    lists = make_logits(weights, 8), KEY, [0, 1], None, 8, 2.0, 15.0, "bits", "uniform", False
    expected, *_ = forward.add_noise([weight.float() for weight in weights], *lists)
    for dtype in (torch.float16, torch.float32, None):
        noisy, *_ = forward.add_noise(weights, *lists, dtype)
        assert_same(noisy, [tensor.to(dtype or torch.bfloat16) for tensor in expected])


@interpreted
def test_noisy_weights_of_a_dtype_without_kernels_come_from_the_reference():
    weights = make((9,))
    lists = weights, make_logits(weights, 8), KEY, [0], None, 8, 2.0, 15.0, "bits", "uniform", False
    assert_same(forward.add_noise(*lists, torch.float64)[0], default.add_noise(*lists, torch.float64)[0])


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 8, 4096, 7])
def test_gradients_of_a_lower_dtype_equal_those_cast_to_float32(group_size, per_group, dtype):
    weights, grads = make((9, 8200)), make((9, 8200), dtype, seed=3)
    weights[-1].clamp_(-1, 1)
    bounds = forward.weight_range(weights, group_size, per_group)
    lists = make_logits(weights, group_size), *bounds, KEY, list(range(len(weights)))
    options = group_size, 2.0, 15.0, "bits", "uniform", per_group
    got = backward.add_noise_backward(grads, weights, *lists, *options)
    expected = backward.add_noise_backward([grad.float() for grad in grads], weights, *lists, *options)
    assert_same([*got[0], *got[1], got[2]], [*expected[0], *expected[1], expected[2]])
    assert all(grad.dtype == torch.float32 for grad in got[0])


@interpreted
def test_outputs_are_no_views_and_repeat_exactly():
    weights, grads = make((8192, 100, 3)), make((8192, 100, 3), seed=3)
    once, _ = both_passes(weights, grads, 8, False, "gaussian", "bits")
    again, _ = both_passes(weights, grads, 8, False, "gaussian", "bits")
    for one, other in zip(once, again, strict=True):
        assert_same(one if isinstance(one, list) else [one], other if isinstance(other, list) else [other])
    assert not any(noisy._is_view() for noisy in once[0])
    before = once[0][1].clone()
    once[0][0].zero_()
    assert torch.equal(once[0][1], before)
    assert once[0][1]._version == 0


# -- export --------------------------------------------------------------------------------------------------


def words_needed(widths, group_size, count):
    width_of = per_element(widths, count, group_size)
    return sum(stream_words(int((width_of == width).sum()), width) for width in range(1, 17))


@interpreted
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 8, 7])
@pytest.mark.parametrize("count", [0, 1, 33, 1025, 5000])
def test_levels_and_words_equal_the_oracle(count, group_size, per_group):
    weight = make((count,))[0]
    generator = torch.Generator().manual_seed(2)
    shape = (group_count(count, group_size),)
    widths = torch.randint(1, 17, shape, generator=generator, dtype=torch.uint8)
    found, _ = default.weight_range([weight], group_size, per_group)
    arguments = [widths], found, group_size, per_group
    (levels,) = default.quantize([weight], *arguments)
    assert_same(export.quantize([weight], *arguments), [levels])
    (restored,) = default.dequantize([levels], *arguments, torch.float32)
    assert_same(export.dequantize([levels], *arguments, torch.float32), [restored])
    assert_same(export.fake_quantize([weight], *arguments), [restored])
    size = words_needed(widths, group_size, count)
    words = default.pack(levels, widths, group_size, size)
    assert_same([export.pack(levels, widths, group_size, size)], [words])
    assert_same([export.unpack(words, widths, group_size, count)], [levels])
    options = widths, found, group_size, per_group
    assert_same([export.quantize_pack(weight, *options, size)], [words])
    assert_same([export.unpack_dequantize(words, *options, [count], torch.float32)], [restored])


@interpreted
@pytest.mark.parametrize("width", range(1, 17))
def test_each_width_alone_round_trips(width):
    levels = torch.randint(0, 1 << width, (3000,), generator=torch.Generator().manual_seed(width)).to(torch.int32)
    widths = torch.full((3000 // 8,), width, dtype=torch.uint8)
    words = default.pack(levels, widths, 8, stream_words(3000, width))
    assert_same([export.pack(levels, widths, 8, stream_words(3000, width))], [words])
    assert_same([export.unpack(words, widths, 8, 3000)], [levels])


@interpreted
def test_levels_of_halves_ties_constants_and_outliers_equal_the_oracle():
    for dtype in EPSILON:
        weight = torch.linspace(-1, 1, 1021).to(dtype)
        widths = torch.tensor([8], dtype=torch.uint8)
        for bounds in ([[-1.0, 1.0]], [[0.25, 0.25]], [[-0.5, 0.5]], [[float("nan"), float("nan")]]):
            arguments = [widths], torch.tensor(bounds), 0, False
            assert_same(export.quantize([weight], *arguments), default.quantize([weight], *arguments))


@interpreted
def test_streams_follow_a_change_of_widths():
    levels = torch.ones(64, dtype=torch.int32)
    widths = torch.full((8,), 2, dtype=torch.uint8)
    export.pack(levels, widths, 8, 4)
    widths[0] = 3
    words = export.pack(levels, widths, 8, 7)
    assert torch.equal(words, default.pack(levels, widths, 8, 7))
    with pytest.raises(ValueError, match="need exactly 7 words, got 4"):
        export.pack(levels, widths, 8, 4)
    with pytest.raises(ValueError, match="between 1 and 16"):
        export.pack(levels, torch.full((8,), 17, dtype=torch.uint8), 8, 4)


def level_counts(widths, group_size, count):
    width_of = per_element(widths, count, group_size)
    return [int((width_of == width).sum()) for width in range(1, 17)]


@interpreted
@pytest.mark.parametrize(("group_size", "dtype"), [(0, torch.float32), (8, torch.bfloat16), (7, torch.float16)])
def test_planes_of_a_weight_equal_the_oracle(group_size, dtype):
    for count in (0, 1, 2500):
        (weight,) = make((count,), dtype)
        generator = torch.Generator().manual_seed(2)
        chosen = torch.randint(0, 3, (group_count(count, group_size),), generator=generator)
        widths = torch.tensor([1, 5, 16], dtype=torch.uint8)[chosen]
        found, _ = default.weight_range([weight], group_size, False)
        for chosen in (widths, widths.clamp(5, 5)):
            counts = level_counts(chosen, group_size, count)
            arguments = weight, chosen, found, group_size, counts
            assert_same(export.quantize_planes(*arguments), default.quantize_planes(*arguments))


@interpreted
def test_planes_of_a_weight_refuse_other_level_counts():
    weight, widths = make((16,))[0], torch.tensor([3, 4], dtype=torch.uint8)
    with pytest.raises(ValueError, match="quantize_planes: expected level_counts"):
        export.quantize_planes(weight, widths, torch.tensor([[0.0, 1.0]]), 8, [16] + [0] * 15)


@interpreted
@pytest.mark.parametrize(("rows", "columns"), [(64, 32), (8, 10), (16, 5), (32, 3)])
def test_planes_equal_the_oracle(rows, columns):
    for nbits in (0, 1, 5, 15):
        for count in (0, 1, rows * columns + 3):
            generator = torch.Generator().manual_seed(nbits)
            values = torch.randint(0, 1 << nbits, (count,), generator=generator).to(torch.int16)
            planes = default.pack_planes(values, nbits, rows, columns)
            assert_same([export.pack_planes(values, nbits, rows, columns)], [planes])
            assert_same(
                export.pack_planes_seen(values, nbits, rows, columns),
                default.pack_planes_seen(values, nbits, rows, columns),
            )
            assert_same([export.unpack_planes(planes, count)], [default.unpack_planes(planes, count)])
