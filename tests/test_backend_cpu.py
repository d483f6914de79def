"""The compiled core against the oracle: bit for bit where integers, levels, words and uniforms are concerned.

Tolerances: a step comes from float32 exponentials within 3e-7 and gaussian noise is within 2e-6 of the real
value, so a float32 noisy weight may differ by 1e-5 of the range; a half-precision one by one unit in the last
place.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib

import pytest
import torch

import diffq_fast.functional
from diffq_fast import reference
from diffq_fast.backends import cpu, default
from diffq_fast.backends.cpu import loading
from diffq_fast.reference import group_count

pytestmark = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])

ops = torch.ops.diffq_fast
COUNTS = (0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 5000)
GROUP_SIZES = (0, 1, 2, 4, 7, 8, 16, 100, 3000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEY = torch.tensor(-0x123456789ABCDEF)
EPSILON = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def make_weights(counts, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).to(dtype) for count in counts]


def make_logits(weights, group_size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(group_count(w.numel(), group_size), generator=generator) * 2 for w in weights]


def make_widths(weights, group_size, seed=2):
    generator = torch.Generator().manual_seed(seed)
    groups = [group_count(weight.numel(), group_size) for weight in weights]
    return [torch.randint(1, 17, (count,), generator=generator, dtype=torch.uint8) for count in groups]


def rows_of(found, widths, per_group):
    return found.split([len(width) for width in widths] if per_group else 1)


def assert_all_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one, other)


def options(group_size, per_group=False, param="bits", kind="gaussian"):
    return group_size, 2.0, 15.0, param, kind, per_group


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Noise and training.


@pytest.mark.parametrize("first", [0, 1, 13, 2**35 - 100])
def test_noise_equals_the_oracle(first):
    for count in COUNTS:
        uniform = ops.noise(KEY, 5, first, count, "uniform")
        assert torch.equal(uniform, default.noise(KEY, 5, first, count, "uniform"))
        gaussian = ops.noise(KEY, 2**32 - 1, first, count, "gaussian")
        torch.testing.assert_close(gaussian, default.noise(KEY, 2**32 - 1, first, count, "gaussian"), rtol=0, atol=4e-6)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_range_equals_the_oracle(dtype, group_size, per_group):
    weights = make_weights((*COUNTS, 70001), dtype)
    assert_all_equal(
        ops.weight_range(weights, group_size, per_group), default.weight_range(weights, group_size, per_group)
    )


def test_range_of_ties_constants_and_nan_equals_the_oracle():
    weights = [torch.ones(40000), torch.tensor([1.0, -2, 1, -2, 0]), torch.tensor([1.0, float("nan")])]
    weights += [torch.tensor([0.0, -0.0]), torch.full((9,), float("inf")), torch.tensor([-float("inf"), 1.0])]
    found, extremes = ops.weight_range(weights, 2, False)
    expected, places = default.weight_range(weights, 2, False)
    assert torch.equal(extremes, places)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        ops.weight_range(weights, 2, True)[0],
        default.weight_range(weights, 2, True)[0],
        rtol=0,
        atol=0,
        equal_nan=True,
    )


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("param", ["bits", "noise"])
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_noisy_weights_equal_the_oracle(dtype, group_size, kind, param, per_group):
    weights = make_weights((*COUNTS, 40000), dtype)
    logits = make_logits(weights, group_size)
    arguments = (
        weights,
        logits,
        KEY,
        list(range(len(weights))),
        None,
        *options(group_size, per_group, param, kind),
    )
    noisy, found, extremes = ops.add_noise(*arguments)
    expected, expected_range, expected_extremes = default.add_noise(*arguments)
    assert torch.equal(found, expected_range)
    assert torch.equal(extremes, expected_extremes)
    for got, other in zip(noisy, expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, other, rtol=EPSILON[dtype], atol=1e-4)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("param", ["bits", "noise"])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_the_oracle(dtype, group_size, param, per_group):
    weights = make_weights((*COUNTS, 40000), dtype)
    logits = make_logits(weights, group_size)
    grads = make_weights((*COUNTS, 40000), dtype, seed=3)
    streams = list(range(len(weights)))
    bounds = ops.weight_range(weights, group_size, per_group)
    arguments = grads, weights, logits, *bounds, KEY, streams, *options(group_size, per_group, param)
    grad_weights, grad_logits, nonfinite = ops.add_noise_backward(*arguments)
    expected_weights, expected_logits, expected_nonfinite = default.add_noise_backward(*arguments)
    assert torch.equal(nonfinite, expected_nonfinite)
    for got, other in zip(grad_weights, expected_weights, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, other, rtol=max(EPSILON[dtype], 1e-5), atol=2e-4)
    for got, other, logit in zip(grad_logits, expected_logits, logits, strict=True):
        assert got.dtype == torch.float32
        assert got.shape == logit.shape
        scale = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(got, other, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 4, 20000])
def test_gradient_of_ties_equals_the_oracle(group_size, per_group):
    weight = torch.randn(50000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    constant = torch.ones(100)
    weights, grads = [weight, constant], [torch.ones(50000), torch.ones(100)]
    logits = make_logits(weights, group_size)
    bounds = ops.weight_range(weights, group_size, per_group)
    arguments = grads, weights, logits, *bounds, KEY, [0, 1], *options(group_size, per_group)
    got, expected = ops.add_noise_backward(*arguments), default.add_noise_backward(*arguments)
    for one, other in zip(got[0], expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.equal(got[0][0], grads[0])
    assert torch.equal(got[0][1], grads[1])


def test_autograd_through_the_core_matches_float64():
    weight = torch.randn(41, generator=torch.Generator().manual_seed(0))
    logit = torch.linspace(-2, 2, 6)

    def gradients(dtype):
        leaves = weight.to(dtype).requires_grad_(), logit.to(dtype).requires_grad_()
        noisy = ops.add_noise([leaves[0]], [leaves[1]], KEY, [0], None, *options(8))[0][0]
        return torch.autograd.grad((noisy**2).sum(), leaves)

    for got, expected in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_nonfinite_logit_gradients_become_zero_and_are_counted():
    weights, grads = make_weights((64, 41), torch.float32), make_weights((64, 41), torch.float32, seed=3)
    grads[1][3], grads[1][40] = float("nan"), float("inf")
    logits = make_logits(weights, 8)
    bounds = ops.weight_range(weights, 8, False)
    _, grad_logits, nonfinite = ops.add_noise_backward(grads, weights, logits, *bounds, KEY, [0, 1], *options(8))
    assert nonfinite.tolist() == [0.0, 2.0]
    assert grad_logits[1][0] == 0
    assert grad_logits[1][5] == 0
    assert grad_logits[1][1:5].ne(0).all()


def test_many_small_weights_equal_one_call_each():
    weights = make_weights(range(300), torch.float32)
    logits = make_logits(weights, 8)
    streams = [7 * index for index in range(300)]
    noisy, found, _ = ops.add_noise(weights, logits, KEY, streams, None, *options(8))
    for index, stream in enumerate(streams):
        alone = ops.add_noise(weights[index : index + 1], logits[index : index + 1], KEY, [stream], None, *options(8))
        assert torch.equal(noisy[index], alone[0][0])
        assert torch.equal(found[index], alone[1][0])


@pytest.mark.parametrize("group_size", [0, 7, 8, 20000])
@pytest.mark.parametrize("per_group", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(threads, group_size, per_group):
    weights = make_weights((100001, 40000, 5), torch.float32)
    grads = make_weights((100001, 40000, 5), torch.float32, seed=3)
    logits, widths = make_logits(weights, group_size), make_widths(weights, group_size)

    def everything(number):
        threads(number)
        bounds = ops.weight_range(weights, group_size, per_group)
        chosen = options(group_size, per_group)
        results = list(ops.add_noise(weights, logits, KEY, [0, 1, 2], None, *chosen)[0])
        backward = ops.add_noise_backward(grads, weights, logits, *bounds, KEY, [0, 1, 2], *chosen)
        results += [*backward[0], *backward[1]]
        levels = ops.quantize(weights, widths, bounds[0], group_size, per_group)
        words = diffq_fast.functional.packed_word_count(widths[0], 100001, group_size=group_size)
        return [*results, *levels, ops.pack(levels[0], widths[0], group_size, words)]

    one = everything(1)
    assert_all_equal(everything(2), one)
    assert_all_equal(everything(5), one)


# Export.


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_and_words_equal_the_oracle(dtype, group_size, per_group):
    weights = make_weights((*COUNTS, 20000), dtype)
    widths = make_widths(weights, group_size)
    found, _ = ops.weight_range(weights, group_size, per_group)
    levels = ops.quantize(weights, widths, found, group_size, per_group)
    assert_all_equal(levels, default.quantize(weights, widths, found, group_size, per_group))
    back = ops.dequantize(levels, widths, found, group_size, per_group, dtype)
    assert_all_equal(back, default.dequantize(levels, widths, found, group_size, per_group, dtype))
    assert_all_equal(ops.fake_quantize(weights, widths, found, group_size, per_group), back)
    for other in DTYPES:
        expected = default.dequantize(levels, widths, found, group_size, per_group, other)
        assert_all_equal(ops.fake_quantize(weights, widths, found, group_size, per_group, other), expected)
    rows = rows_of(found, widths, per_group)
    for weight, width, level, restored, row in zip(weights, widths, levels, back, rows, strict=True):
        expected = default.pack(level, width, group_size, 0)
        size = expected.numel()
        assert torch.equal(ops.pack(level, width, group_size, size), expected)
        assert torch.equal(ops.unpack(expected, width, group_size, level.numel()), level)
        assert torch.equal(ops.quantize_pack(weight, width, row, group_size, per_group, size), expected)
        shape = list(level.shape)
        assert torch.equal(ops.unpack_dequantize(expected, width, row, group_size, per_group, shape, dtype), restored)


def test_any_float_quantizes_like_the_oracle():
    weight = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0, -0.0, 1e-45])
    widths = torch.tensor([3], dtype=torch.uint8)
    for lo, hi in (
        (-1.0, 1.0),
        (0.0, 0.0),
        (float("nan"), float("nan")),
        (-3e38, 3e38),
        (-float("inf"), 1.0),
    ):
        found = torch.tensor([[lo, hi]])
        got = ops.quantize([weight], [widths], found, 0, False)
        assert_all_equal(got, default.quantize([weight], [widths], found, 0, False))
        assert got[0].min() >= 0
        assert got[0].max() <= 7


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("rows", [8, 16, 32, 64])
def test_bit_planes_equal_the_oracle(rows, dtype):
    generator = torch.Generator().manual_seed(0)
    for count in COUNTS:
        values = torch.randint(0, 128, (count,), generator=generator).to(dtype)
        for nbits in (0, 1, 7, 9):
            for columns in (1, 32, 33):
                planes = ops.pack_planes(values, nbits, rows, columns)
                assert_all_equal([planes], [default.pack_planes(values, nbits, rows, columns)])
                length = min(count, planes.shape[0] * rows * columns)
                assert_all_equal([ops.unpack_planes(planes, length)], [default.unpack_planes(planes, length)])


def test_bit_planes_above_a_values_own_bits_equal_the_oracle():
    for values in (torch.tensor([0xCE, 1, 255], dtype=torch.uint8), torch.tensor([-2, 7], dtype=torch.int16)):
        assert_all_equal([ops.pack_planes(values, 20, 64, 32)], [default.pack_planes(values, 20, 64, 32)])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("where", [0, 31, 2047, 2048, 49_998])
def test_one_value_that_does_not_fit_is_seen_wherever_it_is(where, dtype):
    bounds = torch.iinfo(dtype)
    values = torch.arange(49_999).remainder(8).to(dtype)
    assert all(0 <= kernel(values, 3, 64, 32)[1] < 8 for kernel in (ops.pack_planes_seen, default.pack_planes_seen))
    for wrong in {8, 64, -1, bounds.min, bounds.max} - {0}:
        if bounds.min <= wrong <= bounds.max:
            values[where] = wrong
            for kernel in (ops.pack_planes_seen, default.pack_planes_seen):
                planes, seen = kernel(values, 3, 64, 32)
                assert not 0 <= seen < 8
                assert torch.equal(planes, reference.pack_planes(values, 3, 64, 32))


def test_checksums_of_every_length_and_place_are_zlibs():
    data = torch.randint(0, 256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    for first in range(17):
        for count in (*range(300), 4095, 4096, 4097):
            part = data[first : first + count]
            assert int(ops.checksum(part)) == zlib.crc32(part.numpy())


# Inputs as they come.


def test_weights_in_other_memory_formats_follow_the_logical_order():
    plain = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    strided = [plain.to(memory_format=torch.channels_last), torch.randn(9, 7).t(), torch.randn(40)[::2]]
    weights = [weight.contiguous() for weight in strided]
    logits, widths = make_logits(weights, 8), make_widths(weights, 8)
    chosen = [0, 1, 2], None, *options(8)
    noisy = ops.add_noise(strided, logits, KEY, *chosen)[0]
    assert_all_equal(noisy, ops.add_noise(weights, logits, KEY, *chosen)[0])
    assert all(tensor.is_contiguous() for tensor in noisy)
    found, _ = ops.weight_range(strided, 8, False)
    levels = ops.quantize(strided, widths, found, 8, False)
    assert_all_equal(levels, ops.quantize(weights, widths, found, 8, False))
    odd_logits = [torch.stack([logit, logit], dim=1)[:, 0] for logit in logits]
    assert_all_equal(ops.add_noise(weights, odd_logits, KEY, *chosen)[0], noisy)


def test_expanded_gradients_are_read_element_by_element():
    weights, logits = make_weights((64,), torch.float32), [torch.zeros(8)]
    bounds = ops.weight_range(weights, 8, False)
    rest = weights, logits, *bounds, KEY, [0], *options(8)
    expanded = ops.add_noise_backward([torch.ones(1).expand(64)], *rest)
    assert_all_equal(expanded[0], ops.add_noise_backward([torch.ones(64)], *rest)[0])


def test_float64_is_computed_in_float64():
    weights, logits = [torch.randn(40, dtype=torch.float64)], [torch.zeros(5, dtype=torch.float64)]
    noisy, found, _ = ops.add_noise(weights, logits, KEY, [0], None, *options(8))
    assert noisy[0].dtype == found.dtype == torch.float64
    assert torch.equal(noisy[0], default.add_noise(weights, logits, KEY, [0], None, *options(8))[0][0])


def test_half_precision_logits_are_computed_in_float32():
    weights, logits = make_weights((40,), torch.bfloat16), [torch.linspace(-1, 1, 5).to(torch.bfloat16)]
    noisy = ops.add_noise(weights, logits, KEY, [0], None, *options(8))[0]
    assert torch.equal(noisy[0], ops.add_noise(weights, [logits[0].float()], KEY, [0], None, *options(8))[0][0])


def test_operators_refuse_sizes_that_the_core_would_overrun():
    weights, found = make_weights((64,), torch.float32), torch.tensor([[0.0, 1.0]])
    widths = torch.full((8,), 4, dtype=torch.uint8)
    levels = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"add_noise: logits\[0\]: expected 8 values, .* got 7"):
        ops.add_noise(weights, [torch.zeros(7)], KEY, [0], None, *options(8))
    with pytest.raises(ValueError, match=r"quantize: widths\[0\]: expected 8 values, .* got 7"):
        ops.quantize(weights, [widths[:7]], found, 8, False)
    with pytest.raises(ValueError, match=r"dequantize: range: expected float32 \[8, 2\], got torch.float32 \[1, 2\]"):
        ops.dequantize([levels], [widths], found, 8, True, torch.float32)
    with pytest.raises(ValueError, match=r"fake_quantize: widths\[0\]: expected 8 values, .* got 7"):
        ops.fake_quantize(weights, [widths[:7]], found, 8, False)
    with pytest.raises(ValueError, match=r"fake_quantize: range: expected float32 \[8, 2\], got .* \[1, 2\]"):
        ops.fake_quantize(weights, [widths], found, 8, True)
    with pytest.raises(ValueError, match="pack: widths must be between 1 and 16 and need exactly word_count words"):
        ops.pack(levels, widths, 8, 7)
    with pytest.raises(ValueError, match=r"unpack: widths must be .* got word_count=9"):
        ops.unpack(torch.zeros(9, dtype=torch.int32), widths, 8, 64)
    with pytest.raises(ValueError, match="unpack_dequantize: widths must be"):
        ops.unpack_dequantize(torch.zeros(8, dtype=torch.int32), widths + 13, found, 8, False, [64], torch.float32)


def test_operators_refuse_keys_streams_and_dtypes_that_the_core_would_overrun():
    weights, logits, grads = make_weights((64,), torch.float32), [torch.zeros(8)], make_weights((64,), torch.float32)
    widths, words = torch.full((8,), 4, dtype=torch.uint8), torch.zeros(8, dtype=torch.int32)
    bounds = ops.weight_range(weights, 8, False)
    for key, streams in ((KEY.to(torch.int32), [0]), (KEY.repeat(2), [0]), (KEY, []), (KEY, [0, 1])):
        with pytest.raises(
            ValueError, match=r"add_noise: expected (one int64 key and 1|weights, and as many logits and) streams"
        ):
            ops.add_noise(weights, logits, key, streams, None, *options(8))
        with pytest.raises(ValueError, match="add_noise_backward: expected one int64 key and 1 streams"):
            ops.add_noise_backward(grads, weights, logits, *bounds, key, streams, *options(8))
    with pytest.raises(ValueError, match="noise: expected one int64 key"):
        ops.noise(KEY.to(torch.int32), 0, 0, 8, "uniform")
    with pytest.raises(ValueError, match="noise: first and count must not be negative nor reach"):
        ops.noise(KEY, 0, 2**63 - 8, 8, "uniform")
    for extremes in (bounds[1].to(torch.int32), bounds[1][:0], bounds[1].flatten()):
        with pytest.raises(ValueError, match=r"add_noise_backward: extremes: expected int64 \[1, 4\]"):
            ops.add_noise_backward(grads, weights, logits, bounds[0], extremes, KEY, [0], *options(8))
    with pytest.raises(ValueError, match=r"unpack: words: expected 32 bits each, got torch\.int16"):
        ops.unpack(words.to(torch.int16), widths, 8, 64)
    with pytest.raises(ValueError, match=r"unpack_dequantize: words: expected 32 bits each, got torch\.uint8"):
        ops.unpack_dequantize(words.to(torch.uint8), widths, bounds[0], 8, False, [64], torch.float32)


@pytest.mark.parametrize("name", ["add_noise", "weight_range", "noise"])
def test_opcheck_passes(name):
    weights, logits = make_weights((40, 9), torch.float32), [torch.zeros(5), torch.zeros(2)]
    arguments = {
        "add_noise": (weights, logits, KEY, [0, 1], None, *options(8)),
        "weight_range": (weights, 8, False),
        "noise": (KEY, 0, 3, 20, "uniform"),
    }[name]
    torch.library.opcheck(getattr(ops, name), arguments)


# With and without the core.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_quantize_planes_equals_quantize_then_pack_planes(group_size, dtype):
    for count in (*COUNTS, 30000):
        weight = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
        groups = group_count(count, group_size)
        widths = torch.randint(1, 17, (groups,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        found = diffq_fast.functional.weight_range([weight], group_size=group_size)
        planes = diffq_fast.functional.quantize_planes(weight, widths, found, group_size=group_size)
        levels = diffq_fast.functional.quantize([weight], [widths], found, group_size=group_size)[0]
        members = widths.repeat_interleave(group_size or count)[:count] if count else widths
        for width, each in enumerate(planes, 1):
            chosen = levels[members == width]
            assert torch.equal(each, ops.pack_planes(chosen, width, 64, 32))


def test_quantize_planes_refuses_other_level_counts():
    weight, widths = torch.arange(16.0), torch.tensor([3, 4], dtype=torch.uint8)
    found = torch.tensor([[0.0, 15.0]])
    for counts in ([0, 0, 8, 8] + [0] * 11, [0, 0, 9, 8] + [0] * 12, [0, 0, 8, -8] + [0] * 12, []):
        with pytest.raises(ValueError, match="quantize_planes: expected level_counts"):
            ops.quantize_planes(weight, widths, found, 8, counts)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


STATUS = "from diffq_fast.backends import cpu; print(cpu.status())"


def test_disabled_core_answers_through_the_reference():
    assert run_python(STATUS, DIFFQ_FAST_DISABLE_CORE="1") == "(False, 'DIFFQ_FAST_DISABLE_CORE is set')"
    code = "import torch, diffq_fast.functional as f; print(f.weight_range([torch.tensor([1., 3.])]).tolist())"
    assert run_python(code, DIFFQ_FAST_DISABLE_CORE="1") == "[[1.0, 3.0]]"


def test_unknown_instruction_set_is_an_error():
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_python(STATUS, DIFFQ_FAST_ISA="avx9")
    assert "ValueError: diffq_fast: DIFFQ_FAST_ISA: expected one of scalar" in caught.value.stderr
    assert "got 'avx9'; unset it to use the best of them" in caught.value.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_computes_with_new_threads():
    code = """
import os, torch, diffq_fast.functional as f
torch.set_num_threads(2)
weight = torch.arange(200000.0)
f.weight_range([weight])
child = os.fork()
if child == 0:
    os._exit(0 if f.weight_range([weight]).tolist() == [[0.0, 199999.0]] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(code) == "0"


def test_a_thread_inside_the_core_does_not_abort_a_program_that_ends():
    code = """
import threading, torch, diffq_fast.functional
from diffq_fast.backends.cpu.loading import core
key, z, inside = torch.tensor(1), torch.empty(2000000), threading.Event()
def run():
    while True:
        inside.set()
        core.noise(key.data_ptr(), 0, 0, z.numel(), 1, z.data_ptr(), 2)
for _ in range(3):
    threading.Thread(target=run, daemon=True).start()
inside.wait()
print("ended")
"""
    assert run_python(code) == "ended"


@pytest.mark.skipif(not loading.find_team(), reason="torch has no OpenMP runtime that the core can call")
def test_own_threads_give_what_torchs_threads_give():
    weights = make_weights((300001, 70000), torch.float32)
    logits, grads = make_logits(weights, 8), make_weights((300001, 70000), torch.float32, seed=2)
    options = (8, 2.0, 15.0, "bits", "gaussian", False)
    widths = (torch.arange(group_count(300001, 8)) % 5 + 2).to(torch.uint8)

    def everything():
        noisy, found, extremes = ops.add_noise(weights, logits, KEY, [0, 1], None, *options)
        back = ops.add_noise_backward(grads, weights, logits, found, extremes, KEY, [0, 1], *options)
        words = diffq_fast.functional.quantize_pack(weights[0], widths, found[:1], group_size=8)
        return [*noisy, found, extremes, *back[0], *back[1], words]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with_torchs = everything()
        loading.core.use_team(0)
        with_own = everything()
    finally:
        loading.core.use_team(loading.find_team())
        torch.set_num_threads(before)
    for mine, other in zip(with_own, with_torchs, strict=True):
        assert torch.equal(mine, other)
