"""The operators: equal to the oracle, right gradients, well registered, deterministic given a key."""

import zlib

import pytest
import torch
from torch.library import opcheck

from diffq_fast import functional
from diffq_fast.reference import operators as reference
from diffq_fast.reference import philox
from diffq_fast.reference.bits import bits_from_logits, whole_bits

ops = torch.ops.diffq_fast
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PARAMS, KINDS = ("bits", "noise"), ("uniform", "gaussian")
NAN, INF = float("nan"), float("inf")
KEY = torch.tensor(-8198552921648689)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def weights_of(dtype=torch.float32, seed=0):
    """Ragged for each group size used here; an empty one, one element, no dimension, a dense-permuted one."""
    torch.manual_seed(seed)
    shapes = [(5, 7), (0,), (1,), (2, 3), ()]
    permuted = torch.randn(2, 3, 3, 5).to(memory_format=torch.channels_last)
    return [tensor.to(dtype) for tensor in (*(torch.randn(shape) for shape in shapes), permuted)]


def logits_of(weights, group_size, dtype=torch.float32):
    return [torch.randn(reference.group_count(weight.numel(), group_size)).to(dtype) for weight in weights]


def widths_of(weights, group_size):
    counts = [reference.group_count(weight.numel(), group_size) for weight in weights]
    return [(torch.arange(groups) % 16 + 1).to(torch.uint8) for groups in counts]


def options_of(group_size, *, min_bits=2.0, max_bits=9.0, param="bits", kind="gaussian", per_group=False):
    return group_size, min_bits, max_bits, param, kind, per_group


def leaves(tensors):
    return [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]


def add_noise(weights, logits, *options, key=KEY, streams=None, tally=None):
    streams = list(range(len(weights))) if streams is None else streams
    return ops.add_noise(weights, logits, key, streams, tally, *options)[0]


# -- torch.library.opcheck ---------------------------------------------------------------------------------


def check(operator, *arguments):
    results = opcheck(operator, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_opcheck_draw_key():
    results = opcheck(ops.draw_key.default, (torch.zeros(3),), test_utils=["test_schema", "test_faketensor"])
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 9), (2**35 + 3, 30)])
def test_opcheck_noise(first, count, kind):
    check(ops.noise.default, KEY, 2**32 - 1, first, count, kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 4])
def test_opcheck_weight_range(group_size, per_group, dtype):
    check(ops.weight_range.default, weights_of(dtype), group_size, per_group)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_group", [False, True])
def test_opcheck_add_noise(per_group, dtype, requires_grad):
    weights = weights_of(dtype)
    logits = logits_of(weights, 4, torch.float64 if dtype == torch.float64 else torch.float32)
    tally = torch.zeros(len(weights))
    if requires_grad:
        weights, logits, tally = leaves(weights), leaves(logits), tally.requires_grad_()
    streams = list(range(len(weights)))
    check(ops.add_noise.default, weights, logits, KEY, streams, tally, *options_of(4, per_group=per_group))
    check(ops.add_noise.default, weights[:1], [logits[0]], KEY, [3], None, *options_of(4, per_group=per_group))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_group", [False, True])
def test_opcheck_add_noise_backward(per_group, dtype):
    weights = weights_of(dtype)
    logits = logits_of(weights, 4, torch.float64 if dtype == torch.float64 else torch.float32)
    found, extremes = ops.weight_range(weights, 4, per_group)
    grads = [torch.ones_like(weight) for weight in weights]
    streams = list(range(len(weights)))
    arguments = (grads, weights, logits, found, extremes, KEY, streams, *options_of(4, per_group=per_group))
    check(ops.add_noise_backward.default, *arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("per_group", [False, True])
def test_opcheck_export_operators(per_group, dtype):
    weights = weights_of(dtype)
    widths = widths_of(weights, 4)
    found, _ = ops.weight_range(weights, 4, per_group)
    check(ops.quantize.default, weights, widths, found, 4, per_group)
    levels = ops.quantize(weights, widths, found, 4, per_group)
    check(ops.dequantize.default, levels, widths, found, 4, per_group, dtype)
    check(ops.fake_quantize.default, weights, widths, found, 4, per_group)
    check(ops.fake_quantize.default, weights, widths, found, 4, per_group, torch.bfloat16)


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("per_group", [False, True])
def test_opcheck_packing_operators(per_group, index):
    weight = weights_of()[index]
    (widths,) = widths_of([weight], 4)
    found, _ = ops.weight_range([weight], 4, per_group)
    (levels,) = ops.quantize([weight], [widths], found, 4, per_group)
    count = functional.packed_word_count(widths, weight.numel(), 4)
    check(ops.pack.default, levels, widths, 4, count)
    words = ops.pack(levels, widths, 4, count)
    check(ops.unpack.default, words, widths, 4, weight.numel())
    check(ops.quantize_pack.default, weight, widths, found, 4, per_group, count)
    shape = list(weight.shape)
    check(ops.unpack_dequantize.default, words, widths, found, 4, per_group, shape, torch.float32)


@pytest.mark.parametrize("count", [0, 1, 5000])
@pytest.mark.parametrize("param", PARAMS)
def test_widths_from_logits(param, count):
    logits = torch.randn(count, generator=torch.Generator().manual_seed(count))
    for each in (logits, logits.double(), logits.half(), logits[::2], logits[None]):
        check(ops.widths_from_logits.default, each, 2.0, 15.0, param, 0.0)
        expected = whole_bits(bits_from_logits(each, 2.0, 15.0, param))
        assert torch.equal(ops.widths_from_logits(each, 2.0, 15.0, param, 0.0), expected)


@pytest.mark.parametrize("count", [0, 1, 3, 70001])
def test_count_widths(count):
    widths = torch.randint(0, 256, (count,), dtype=torch.uint8) % 20
    check(ops.count_widths.default, widths)
    counts = ops.count_widths(widths).tolist()
    assert counts[1:] == [int((widths == width).sum()) for width in range(1, 17)]
    assert sum(counts) == count
    assert torch.equal(ops.count_widths(widths), reference.count_widths(widths))


@pytest.mark.parametrize("index", range(6))
def test_opcheck_quantize_planes(index):
    weight = weights_of()[index]
    (widths,) = widths_of([weight], 4)
    found, _ = ops.weight_range([weight], 4, False)
    members = widths.repeat_interleave(4)[: weight.numel()]
    counts = [int((members == width).sum()) for width in range(1, 17)]
    check(ops.quantize_planes.default, weight, widths, found, 4, counts)


@pytest.mark.parametrize("count", [0, 1, 200])
@pytest.mark.parametrize("rows", sorted(reference.PLANE_DTYPES))
def test_opcheck_plane_operators(rows, count):
    values = torch.arange(count) % 8
    check(ops.pack_planes.default, values, 3, rows, 4)
    check(ops.pack_planes_seen.default, values, 3, rows, 4)
    check(ops.unpack_planes.default, ops.pack_planes(values, 3, rows, 4), count)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 5000])
def test_checksum_is_zlibs(count):
    data = torch.randint(0, 256, (count,), dtype=torch.uint8)
    check(ops.checksum.default, data)
    for each in (data, data[::3], data[1:], data[None]):
        assert int(ops.checksum(each)) == zlib.crc32(each.contiguous().numpy())


# -- equal to the oracle -----------------------------------------------------------------------------------


def amplitude_of(weight):
    return (weight.max() - weight.min()).item() if weight.numel() else 0.0


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_range_equals_the_oracle(dtype, group_size, per_group):
    weights = weights_of(dtype)
    found, extremes = ops.weight_range(weights, group_size, per_group)
    expected = [reference.weight_range(weight, group_size, per_group) for weight in weights]
    assert torch.equal(found, torch.cat(expected))
    assert found.dtype == reference.compute_dtype(weights[0])
    if per_group:
        assert extremes.shape == (0, 4)
    else:
        rows = [reference.extremes(weight, row) for weight, row in zip(weights, expected, strict=True)]
        assert torch.equal(extremes, torch.cat(rows))


@pytest.mark.parametrize("values", [[1.0, 1.0, 0.0, 0.0, 1.0], [0.0, -0.0], [NAN, 1.0], [1.0, NAN], [INF, 0.0]])
def test_weight_range_of_ties_and_nonfinite_values_equals_the_oracle(values):
    weight = torch.tensor(values)
    found, extremes = ops.weight_range([weight], 2, False)
    expected = reference.weight_range(weight, 2, False)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(extremes, reference.extremes(weight, expected))
    found, _ = ops.weight_range([weight], 2, True)
    torch.testing.assert_close(found, reference.weight_range(weight, 2, True), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_noise_equals_the_oracle(dtype, group_size, per_group, param, kind):
    """To 1e-5 of the range in float32, and in half precision to one rounding more."""
    weights = weights_of(dtype)
    logits = logits_of(weights, group_size)
    streams = [4, 0, 2**31, 7, 1, 2**32 - 1]
    options = options_of(group_size, param=param, kind=kind, per_group=per_group)
    noisy = add_noise(weights, logits, *options, streams=streams)
    for weight, logit, stream, found in zip(weights, logits, streams, noisy, strict=True):
        z = philox.noise(KEY, stream, 0, weight.numel(), kind)
        bits = options[:4]
        expected = reference.noisy_weight(weight, logit, z, *bits, per_group)
        assert (found.dtype, found.shape) == (weight.dtype, weight.shape)
        assert found.is_contiguous()
        rounding = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 0
        torch.testing.assert_close(found, expected, rtol=rounding, atol=1e-5 * amplitude_of(weight) + 1e-30)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
def test_gradients_equal_the_oracle(group_size, per_group, param, kind):
    weights = weights_of()
    logits = logits_of(weights, group_size)
    options = options_of(group_size, param=param, kind=kind, per_group=per_group)
    weight_leaves, logit_leaves = leaves(weights), leaves(logits)
    noisy = add_noise(weight_leaves, logit_leaves, *options)
    grads = [torch.randn_like(tensor) for tensor in noisy]
    found = torch.autograd.grad(noisy, weight_leaves + logit_leaves, grads)
    for index, (weight, logit, grad) in enumerate(zip(weights, logits, grads, strict=True)):
        bounds = reference.weight_range(weight, group_size, per_group)
        z = philox.noise(KEY, index, 0, weight.numel(), kind)
        bits = options[:4]
        grad_weight, grad_logit, _ = reference.noisy_weight_backward(grad, weight, logit, bounds, z, *bits, per_group)
        torch.testing.assert_close(found[index], grad_weight, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[len(weights) + index], grad_logit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_export_and_load_equal_the_oracle(dtype, group_size, per_group):
    weights = weights_of(dtype)
    widths = widths_of(weights, group_size)
    found, _ = ops.weight_range(weights, group_size, per_group)
    levels = ops.quantize(weights, widths, found, group_size, per_group)
    restored = ops.dequantize(levels, widths, found, group_size, per_group, dtype)
    at_once = ops.fake_quantize(weights, widths, found, group_size, per_group)
    in_half = ops.fake_quantize(weights, widths, found, group_size, per_group, torch.float16)
    rows = [reference.weight_range(weight, group_size, per_group) for weight in weights]
    for index, (weight, width, bounds) in enumerate(zip(weights, widths, rows, strict=True)):
        expected = reference.quantize(weight, width, bounds, group_size)
        assert torch.equal(levels[index], expected)
        assert torch.equal(restored[index], reference.dequantize(expected, width, bounds, group_size, dtype))
        assert torch.equal(at_once[index], restored[index])
        half = reference.dequantize(expected, width, bounds, group_size, torch.float16)
        assert torch.equal(in_half[index], half)
        words = reference.pack(expected, width, group_size)
        assert torch.equal(ops.pack(levels[index], width, group_size, words.numel()), words)
        one = bounds, group_size, per_group
        assert torch.equal(ops.quantize_pack(weight, width, *one, words.numel()), words)
        assert torch.equal(ops.unpack(words, width, group_size, weight.numel()), expected.reshape(-1))
        assert torch.equal(ops.unpack_dequantize(words, width, *one, list(weight.shape), dtype), restored[index])


@pytest.mark.parametrize("width", [3, 5, 8, 11, 15])
def test_quantize_equals_the_oracle_next_to_half_levels(width):
    """Where another order of float32 operations would round to another level."""
    highest = 2**width - 1
    halves = (torch.arange(min(highest, 4000)) + 0.5) / highest
    around = [halves, torch.nextafter(halves, torch.zeros(())), torch.nextafter(halves, torch.ones(()))]
    weight = torch.cat([*around, torch.tensor([0.0, 1.0])])
    widths, bounds = torch.tensor([width], dtype=torch.uint8), torch.tensor([[0.0, 1.0]])
    (levels,) = ops.quantize([weight], [widths], bounds, 0, False)
    assert torch.equal(levels, reference.quantize(weight, widths, bounds, 0))
    (restored,) = ops.dequantize([levels], [widths], bounds, 0, False, torch.float32)
    assert torch.equal(restored, reference.dequantize(levels, widths, bounds, 0, torch.float32))
    words = ops.quantize_pack(weight, widths, bounds, 0, False, reference.stream_words(len(weight), width))
    assert torch.equal(words, reference.pack(levels, widths, 0))


@pytest.mark.parametrize("bounds", [[2.0, 2.0], [-1.0, 1.0], [NAN, NAN], [-INF, INF], [0.0, INF]])
def test_quantize_of_odd_values_and_ranges_equals_the_oracle(bounds):
    weight = torch.tensor([2.0, 5.0, -3.0, NAN, INF, -INF, 0.0, -0.0, 1e-45, 3e38])
    widths, found = torch.tensor([5], dtype=torch.uint8), torch.tensor([bounds])
    expected = reference.quantize(weight, widths, found, 0)
    (levels,) = ops.quantize([weight], [widths], found, 0, False)
    assert torch.equal(levels, expected)
    assert torch.equal(ops.quantize_pack(weight, widths, found, 0, False, 5), reference.pack(expected, widths, 0))


@pytest.mark.parametrize("rows", sorted(reference.PLANE_DTYPES))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_planes_equal_the_oracle(dtype, rows):
    for nbits, count in [(0, 5), (1, 1), (7, 1000), (7, 64 * 9)]:
        values = (torch.arange(count) * 37 % 2**nbits).to(dtype)
        planes = ops.pack_planes(values, nbits, rows, 9)
        assert torch.equal(planes, reference.pack_planes(values, nbits, rows, 9))
        if nbits:
            again, seen = ops.pack_planes_seen(values, nbits, rows, 9)
            assert torch.equal(again, planes)
            assert 0 <= seen < 2**nbits
        assert ops.unpack_planes(planes, count).tolist() == values.tolist()


# -- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("group_size", [0, 1, 3, 4])
def test_gradcheck(group_size, per_group, param, kind):
    torch.manual_seed(2)
    weights = [torch.randn(shape, dtype=torch.float64) for shape in ((2, 5), (4,), (1,))]
    weights, logits = leaves(weights), leaves(logits_of(weights, group_size, torch.float64))
    options = options_of(group_size, min_bits=1.5, max_bits=6.0, param=param, kind=kind, per_group=per_group)

    def noisy(*tensors):
        return tuple(add_noise(tensors[:3], tensors[3:], *options))

    assert torch.autograd.gradcheck(noisy, (*weights, *logits))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_share_the_gradient_equally(dtype):
    """All of z enters S; each of the three maxima gets S / 3 and each of the two minima -S / 2."""
    (weight,) = leaves([torch.tensor([3.0, -1.0, 0.0, 3.0, -1.0, 3.0, 0.5, 2.0], dtype=dtype)])
    (logit,) = leaves([torch.zeros(1)])  # 8.5 bits of 2 … 15
    grad = torch.tensor([1.0, -2.0, 0.5, 4.0, 0.25, -1.0, 2.0, 1.0], dtype=dtype)
    (noisy,) = add_noise([weight], [logit], *options_of(0, max_bits=15.0, kind="uniform"))
    noisy.backward(grad)
    total = (grad.double() * philox.uniform(KEY, 0, 0, 8).double()).sum() / (2**8.5 - 1)
    share = torch.tensor([1 / 3, -1 / 2, 0, 1 / 3, -1 / 2, 1 / 3, 0, 0]).double()
    expected = grad.double() + total * share
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-6)
    torch.testing.assert_close(weight.grad.double(), expected, rtol=tolerance, atol=1e-6)
    slope = -torch.log(torch.tensor(2.0)) * 2**8.5 / (2**8.5 - 1) ** 2 * 13 / 4
    expected = 4 * total.item() * (2**8.5 - 1) * slope.item()
    assert logit.grad.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("group_size", [0, 1024, 1000])
def test_sums_over_large_groups_keep_their_precision(group_size):
    """A float32 running sum over a million terms would lose three digits and more."""
    weight, grad = torch.randn(1_000_003), torch.rand(1_000_003) + 1000
    (leaf,) = leaves([weight])
    (logit,) = leaves([torch.zeros(reference.group_count(1_000_003, group_size))])
    add_noise([leaf], [logit], *options_of(group_size, kind="uniform"))[0].backward(grad)
    z = philox.uniform(KEY, 0, 0, 1_000_003)
    bounds = reference.weight_range(weight, 0, False)
    exact = reference.noisy_weight_backward(
        grad.double(), weight.double(), logit.detach().double(), bounds.double(), z, *options_of(group_size)[:4], False
    )
    largest = exact[1].abs().max()
    torch.testing.assert_close(logit.grad.double(), exact[1], rtol=1e-5, atol=1e-6 * largest)
    for end in (weight.argmin(), weight.argmax()):
        total = exact[0][end] - grad[end]
        assert leaf.grad[end].item() - grad[end].item() == pytest.approx(total.item(), rel=1e-4)


def test_frozen_weight_and_frozen_logit_get_no_gradient():
    weights, logits = weights_of()[:1], logits_of(weights_of()[:1], 8)
    options = options_of(8)
    both_w, both_l = leaves(weights), leaves(logits)
    add_noise(both_w, both_l, *options)[0].square().sum().backward()
    only_logits = leaves(logits)
    add_noise(weights, only_logits, *options)[0].square().sum().backward()
    assert weights[0].grad is None
    assert torch.equal(only_logits[0].grad, both_l[0].grad)
    only_weights = leaves(weights)
    add_noise(only_weights, logits, *options)[0].square().sum().backward()
    assert logits[0].grad is None
    assert torch.equal(only_weights[0].grad, both_w[0].grad)
    assert not add_noise(weights, logits, *options)[0].requires_grad


@pytest.mark.parametrize("per_group", [False, True])
def test_weights_outside_of_the_loss_get_no_gradient(per_group):
    weights = [torch.randn(5, 3), torch.randn(2, 2), torch.randn(9), torch.randn(4)]
    logits, options = logits_of(weights, 4), options_of(4, per_group=per_group)
    weight_leaves, logit_leaves = leaves(weights), leaves(logits)
    tally = torch.zeros(4, requires_grad=True)
    noisy = add_noise(weight_leaves, logit_leaves, *options, tally=tally)
    (noisy[0].square().sum() + noisy[2].square().sum()).backward()
    for index in (1, 3):
        assert weight_leaves[index].grad is None
        assert logit_leaves[index].grad is None
    for index in (0, 2):
        alone, logit = leaves([weights[index]]), leaves([logits[index]])
        add_noise(alone, logit, *options, streams=[index])[0].square().sum().backward()
        assert torch.equal(weight_leaves[index].grad, alone[0].grad)
        assert torch.equal(logit_leaves[index].grad, logit[0].grad)
    assert tally.grad.tolist() == [0, 0, 0, 0]


def test_a_weight_reaches_the_loss_with_its_own_stream_and_range():
    """A list is nothing but its weights one by one."""
    weights = weights_of()
    logits, options = logits_of(weights, 8), options_of(8)
    noisy = add_noise(weights, logits, *options)
    for index, (weight, logit) in enumerate(zip(weights, logits, strict=True)):
        assert torch.equal(noisy[index], add_noise([weight], [logit], *options, streams=[index])[0])


def test_nonfinite_logit_gradients_are_zeroed_and_tallied():
    weights = leaves([torch.arange(8.0), torch.arange(8.0), torch.arange(8.0), torch.arange(6.0)])
    logits = leaves([torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(2)])
    tally = torch.zeros(4, requires_grad=True)
    noisy = add_noise(weights, logits, *options_of(4), tally=tally)
    grads = [torch.ones(8), torch.ones(8), torch.ones(8), torch.ones(6)]
    grads[1][5] = NAN
    grads[2][0], grads[2][7] = INF, -INF
    torch.autograd.backward(noisy, grads)
    assert tally.grad.tolist() == [0, 1, 2, 0]
    assert tally.tolist() == [0, 0, 0, 0]
    zeroed = [(logit.grad == 0).tolist() for logit in logits]
    assert zeroed == [[False, False], [False, True], [True, True], [False, False]]
    assert all(logit.grad.isfinite().all() for logit in logits)
    assert weights[1].grad[5].isnan()


def test_tally_counts_only_the_weights_in_the_loss():
    weights, logits = leaves([torch.arange(8.0)] * 3), leaves([torch.zeros(2)] * 3)
    tally = torch.zeros(3, requires_grad=True)
    noisy = add_noise(weights, logits, *options_of(4), tally=tally)
    (noisy[2] * torch.tensor([INF] + [1.0] * 7)).sum().backward()
    assert tally.grad.tolist() == [0, 0, 1]


def test_a_nan_in_a_weight_is_passed_on_and_its_logits_stay_finite():
    weights = [torch.arange(8.0), torch.arange(8.0)]
    weights[0][3] = NAN
    weights, logits = leaves(weights), leaves([torch.zeros(2), torch.zeros(2)])
    tally = torch.zeros(2, requires_grad=True)
    noisy = add_noise(weights, logits, *options_of(4), tally=tally)
    assert noisy[0].isnan().any()
    assert noisy[1].isfinite().all()
    sum(tensor.sum() for tensor in noisy).backward()
    assert logits[0].grad.tolist() == [0, 0]
    assert tally.grad.tolist() == [2, 0]
    assert logits[1].grad.isfinite().all()
    assert (logits[1].grad != 0).all()


def test_second_derivative_is_refused():
    weights, logits = leaves([torch.randn(8)]), leaves([torch.zeros(1)])
    (noisy,) = add_noise(weights, logits, *options_of(8))
    (grad,) = torch.autograd.grad(noisy.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# -- memory, determinism -----------------------------------------------------------------------------------


def test_no_noise_is_kept_for_the_backward():
    weights, logits = (
        leaves([torch.randn(100, 100), torch.randn(3000)]),
        leaves([torch.zeros(1250), torch.zeros(375)]),
    )
    inputs = {tensor.untyped_storage().data_ptr() for tensor in (*weights, *logits, KEY)}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        noisy = add_noise(weights, logits, *options_of(8))
    others = [tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in inputs]
    assert len(kept) >= 5
    assert sum(tensor.untyped_storage().nbytes() for tensor in others) <= 256
    noisy[0].sum().backward()
    assert weights[0].grad is not None


def test_inputs_are_not_changed():
    weights = weights_of()
    logits = logits_of(weights, 8)
    copies = [tensor.clone() for tensor in (*weights, *logits, KEY)]
    noisy = add_noise(leaves(weights), leaves(logits), *options_of(8))
    noisy[0].sum().backward()
    add_noise(weights, logits, *options_of(8))
    for tensor, copy in zip((*weights, *logits, KEY), copies, strict=True):
        assert torch.equal(tensor, copy)


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


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    weights = [torch.randn(333, 301), torch.randn(77), torch.randn(2**16)]
    logits, options = logits_of(weights, 8), options_of(8)

    def run():
        weight_leaves, logit_leaves = leaves(weights), leaves(logits)
        noisy = add_noise(weight_leaves, logit_leaves, *options)
        torch.autograd.backward(noisy, [weight.cos() for weight in weights])
        return [*noisy, *(leaf.grad for leaf in weight_leaves + logit_leaves)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = run()
        torch.set_num_threads(3)
        expected = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_computed_in_float32(dtype):
    (weight,) = leaves([torch.randn(40, 8).to(dtype)])
    logit = torch.randn(40)
    (noisy,) = add_noise([weight], [logit], *options_of(8))
    (wide,) = add_noise([weight.detach().float()], [logit], *options_of(8))
    assert noisy.dtype == dtype
    assert torch.equal(noisy, wide.to(dtype))
    noisy.sum().backward()
    assert weight.grad.dtype == dtype


def test_half_precision_logits_get_half_precision_gradients():
    (weight,), (logit,) = leaves([torch.randn(4, 8)]), leaves([torch.randn(4).to(torch.bfloat16)])
    add_noise([weight], [logit], *options_of(8))[0].sum().backward()
    assert logit.grad.dtype == torch.bfloat16


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


# -- torch.compile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("range_scope", ["tensor", "group"])
def test_compiled_add_noise_equals_eager(range_scope):
    weights, logits = [torch.randn(6, 5), torch.randn(9)], [torch.randn(4), torch.randn(2)]

    def step(weights, logits, key):
        noisy, found = functional.add_noise(weights, logits, key, range_scope=range_scope)
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
